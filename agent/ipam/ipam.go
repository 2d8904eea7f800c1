// Package ipam hands out pod addresses from the node's pod prefixes.
//
//	Node.spec.podCIDRs ──SetPrefixes──► Pool ──Reserve──► one file per address
//
// The directory is the only truth: a file named like the address, holding who
// has it, appears whole or not at all. So a restart forgets nothing, and even
// two processes on one directory never hand an address out twice.
package ipam

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Owner is the attachment that has an address: one interface of one sandbox.
type Owner struct {
	SandboxID string `json:"sandboxID"`
	IfName    string `json:"ifName"`
	// Pod is "namespace/name", for people who look into the directory.
	Pod string `json:"pod,omitempty"`
}

func (o Owner) same(p Owner) bool { return o.SandboxID == p.SandboxID && o.IfName == p.IfName }

// ErrNoPrefix means that the node has no pod prefix yet.
var ErrNoPrefix = errors.New("the node has no pod CIDR yet")

// ExhaustedError means that every address of a prefix family is taken.
type ExhaustedError struct {
	Prefixes []netip.Prefix
	Taken    int
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no free pod address in %v: %d are taken; delete pods or give the node a larger pod CIDR", e.Prefixes, e.Taken)
}

// Pool hands out addresses. Its methods may be called concurrently.
type Pool struct {
	dir string

	mu       sync.Mutex
	prefixes []netip.Prefix
	taken    map[netip.Addr]Owner
	// last is the address handed out last, per family: the search goes on
	// behind it, so that a released address rests as long as possible.
	last map[bool]netip.Addr // key: Is4
}

// Open reads what is reserved in dir, which is made if missing.
func Open(dir string) (*Pool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open address pool: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open address pool: %w", err)
	}
	p := &Pool{dir: dir, taken: map[netip.Addr]Owner{}, last: map[bool]netip.Addr{}}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // of a process that died; harmless if it stays
			continue
		}
		if err := p.load(e.Name()); err != nil {
			return nil, fmt.Errorf("open address pool: %w", err)
		}
	}
	return p, nil
}

const (
	tempPrefix = ".tmp-"
	lastPrefix = "last-" // last-4, last-6: the address handed out last
)

// load reads one file of the directory. An address whose owner cannot be read
// stays taken, with no owner, until Collect.
func (p *Pool) load(name string) error {
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, lastPrefix) {
		if addr, err := netip.ParseAddr(string(data)); err == nil {
			p.last[addr.Is4()] = addr
		}
		return nil
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return fmt.Errorf("%s is neither an address nor ours", filepath.Join(p.dir, name))
	}
	var owner Owner
	if err := json.Unmarshal(data, &owner); err != nil {
		owner = Owner{}
	}
	p.taken[addr] = owner
	return nil
}

// SetPrefixes sets where new addresses come from. Addresses already handed
// out stay with their owners.
func (p *Pool) SetPrefixes(prefixes []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prefixes = slices.Clone(prefixes)
}

// Reserve returns the owner's addresses, one of each family that the node has
// a prefix of, IPv4 first. Asking again gives the same addresses. The errors
// are ErrNoPrefix, *ExhaustedError, and those of the file system; after an
// error the owner has no more addresses than before.
func (p *Pool) Reserve(owner Owner) ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.prefixes) == 0 {
		return nil, ErrNoPrefix
	}
	have := p.ownedBy(owner)
	var fresh []netip.Addr
	for _, is4 := range []bool{true, false} {
		prefixes := family(p.prefixes, is4)
		if len(prefixes) == 0 || slices.ContainsFunc(have, func(a netip.Addr) bool { return a.Is4() == is4 }) {
			continue
		}
		addr, err := p.take(prefixes, owner)
		if err != nil {
			return nil, errors.Join(err, p.free(fresh))
		}
		fresh = append(fresh, addr)
	}
	addrs := append(have, fresh...)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// take finds a free address behind the last one and makes its file.
func (p *Pool) take(prefixes []netip.Prefix, owner Owner) (netip.Addr, error) {
	is4 := prefixes[0].Addr().Is4()
	taken := 0
	for addr := range walk(prefixes, p.last[is4]) {
		if _, ok := p.taken[addr]; ok {
			taken++
			continue
		}
		err := p.create(addr, owner)
		if errors.Is(err, fs.ErrExist) { // another process on this directory
			taken++
			continue
		}
		if err != nil {
			return netip.Addr{}, fmt.Errorf("reserve %s: %w", addr, err)
		}
		p.taken[addr], p.last[is4] = owner, addr
		if err := p.rememberLast(addr); err != nil {
			return netip.Addr{}, errors.Join(err, p.free([]netip.Addr{addr}))
		}
		return addr, nil
	}
	return netip.Addr{}, &ExhaustedError{Prefixes: prefixes, Taken: taken}
}

// create makes the address's file. link(2) fails if it exists, and the file
// has its content before it has its name.
func (p *Pool) create(addr netip.Addr, owner Owner) error {
	data, err := json.Marshal(owner)
	if err != nil {
		return err
	}
	temp, err := p.writeTemp(data)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, filepath.Join(p.dir, addr.String())); err != nil {
		return err
	}
	return syncDir(p.dir)
}

func (p *Pool) writeTemp(data []byte) (name string, err error) {
	f, err := os.CreateTemp(p.dir, tempPrefix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// rememberLast lets the search go on behind addr after a restart too. Losing
// it costs only the rest of released addresses, so it is not synced.
func (p *Pool) rememberLast(addr netip.Addr) error {
	name := lastPrefix + "6"
	if addr.Is4() {
		name = lastPrefix + "4"
	}
	temp := filepath.Join(p.dir, tempPrefix+name)
	if err := os.WriteFile(temp, []byte(addr.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(p.dir, name))
}

// Release gives back all addresses of the owner; having none is no error.
func (p *Pool) Release(owner Owner) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free(p.ownedBy(owner))
}

func (p *Pool) free(addrs []netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		if err := os.Remove(filepath.Join(p.dir, addr.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("release %s: %w", addr, err))
			continue
		}
		delete(p.taken, addr)
	}
	return errors.Join(errs...)
}

// Collect releases every address whose owner isValid does not know.
func (p *Pool) Collect(isValid func(Owner) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var stale []netip.Addr
	for addr, owner := range p.taken {
		if !isValid(owner) {
			stale = append(stale, addr)
		}
	}
	return p.free(stale)
}

// Reserved returns who has which address.
func (p *Pool) Reserved() map[netip.Addr]Owner {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.taken)
}

func (p *Pool) ownedBy(owner Owner) []netip.Addr {
	var addrs []netip.Addr
	for addr, o := range p.taken {
		if o.same(owner) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func family(prefixes []netip.Prefix, is4 bool) []netip.Prefix {
	var of []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() == is4 {
			of = append(of, p.Masked())
		}
	}
	slices.SortFunc(of, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return of
}
