package service

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"weft.dev/weft/dataplane/bpfobj"
)

// MaxBackends is how many backends one list may have (MAX_BACKENDS in
// bpf/lib/types.h).
const MaxBackends = 4096

// Entries are the map entries of a set of frontends. Backends and Ranges are
// what Services refers to: they are added before and deleted after it.
type Entries struct {
	Services map[bpfobj.MapsServiceKey]bpfobj.MapsService
	Backends map[bpfobj.MapsBackendKey]bpfobj.MapsBackend
	Ranges   map[bpfobj.MapsSourceRangeKey]uint32
}

// IDs gives numbers to lists of backends and sets of client prefixes, by
// content. A list never changes under its number, so that a reader sees the
// old list or the new one and nothing in between; and a number that a flow
// remembers says whether its backend has to be looked for again. Frontends
// with equal lists share one.
type IDs struct {
	lists  numbering
	ranges numbering
}

// numbering maps contents to numbers from 1 up. Numbers are not given twice
// before all have been used.
type numbering struct {
	byContent map[string]uint32
	used      map[uint32]bool
	last      uint32
}

func (n *numbering) number(content []byte) uint32 {
	if id, ok := n.byContent[string(content)]; ok {
		return id
	}
	for n.last++; n.last == 0 || n.used[n.last]; n.last++ {
	}
	n.set(string(content), n.last)
	return n.last
}

func (n *numbering) set(content string, id uint32) {
	if n.byContent == nil {
		n.byContent, n.used = map[string]uint32{}, map[uint32]bool{}
	}
	n.byContent[content], n.used[id] = id, true
}

func (n *numbering) keep(live map[uint32]bool) {
	for content, id := range n.byContent {
		if !live[id] {
			delete(n.byContent, content)
			delete(n.used, id)
		}
	}
}

// NewIDs reads the numbers that are in use back from the maps' entries.
func NewIDs(have Entries) *IDs {
	ids := &IDs{}
	lists := map[uint32][]bpfobj.MapsBackend{}
	slots := map[uint32]uint32{}
	for key := range have.Backends {
		slots[key.List] = max(slots[key.List], key.Slot+1)
	}
	for list, n := range slots {
		for slot := range n {
			b, ok := have.Backends[bpfobj.MapsBackendKey{List: list, Slot: slot}]
			if !ok { // left half written or half deleted: never name it again
				lists[list] = nil
				break
			}
			lists[list] = append(lists[list], b)
		}
		ids.lists.last = max(ids.lists.last, list)
	}
	// A half-deleted list may look like a shorter whole one: only lists that
	// a frontend names with their full length are taken back.
	for _, svc := range have.Services {
		for _, l := range [][2]uint32{{svc.InternalList, svc.InternalCount}, {svc.ExternalList, svc.ExternalCount}} {
			if l[0] != 0 && len(lists[l[0]]) == int(l[1]) {
				ids.lists.set(string(encodeBackends(lists[l[0]])), l[0])
			}
			ids.lists.last = max(ids.lists.last, l[0])
		}
		ids.ranges.last = max(ids.ranges.last, svc.SourceSet)
	}
	sets := map[uint32][]bpfobj.MapsSourceRangeKey{}
	for key := range have.Ranges {
		id := ntohl(key.Set)
		sets[id] = append(sets[id], key)
		ids.ranges.last = max(ids.ranges.last, id)
	}
	for id, keys := range sets {
		ids.ranges.set(string(encodeRanges(keys)), id)
	}
	return ids
}

// Keep forgets the numbers that want does not use.
func (ids *IDs) Keep(want Entries) {
	lists, ranges := map[uint32]bool{}, map[uint32]bool{}
	for _, svc := range want.Services {
		lists[svc.InternalList], lists[svc.ExternalList] = true, true
		ranges[svc.SourceSet] = true
	}
	ids.lists.keep(lists)
	ids.ranges.keep(ranges)
}

// Compute encodes frontends. It fails for those that a map entry cannot
// express and leaves them out; the others are complete. It changes nothing
// but ids.
func Compute(frontends []Frontend, ids *IDs) (Entries, []error) {
	entries := Entries{
		Services: make(map[bpfobj.MapsServiceKey]bpfobj.MapsService, len(frontends)),
		Backends: map[bpfobj.MapsBackendKey]bpfobj.MapsBackend{},
		Ranges:   map[bpfobj.MapsSourceRangeKey]uint32{},
	}
	var errs []error
	for _, f := range frontends {
		if err := f.validate(); err != nil {
			errs = append(errs, fmt.Errorf("service %s at %s: %w", f.Service, netip.AddrPortFrom(f.Addr, f.Port), err))
			continue
		}
		entries.add(f, ids)
	}
	return entries, errs
}

func (f Frontend) validate() error {
	switch {
	case !f.Addr.IsValid():
		return fmt.Errorf("its address is not valid")
	case len(f.Internal) > MaxBackends || len(f.External) > MaxBackends:
		return fmt.Errorf("more than %d backends", MaxBackends)
	}
	for _, list := range [][]Backend{f.Internal, f.External} {
		for _, b := range list {
			switch {
			case b.Addr.Is4() != f.Addr.Is4():
				return fmt.Errorf("backend %s is of another address family", b.Addr)
			case f.Protocol == SCTP && b.Port != f.Port:
				return fmt.Errorf("backend port %d differs from the SCTP port %d, which is not supported", b.Port, f.Port)
			}
		}
	}
	return nil
}

func (e Entries) add(f Frontend, ids *IDs) {
	key := bpfobj.MapsServiceKey{Addr: encodeAddr(f.Addr), Port: htons(f.Port), Protocol: uint8(f.Protocol)}
	value := bpfobj.MapsService{
		AffinitySeconds: affinitySeconds(f.Affinity),
		SourceSet:       e.addRanges(f.SourceRanges, ids),
	}
	value.InternalList, value.InternalCount = e.addList(f.Internal, ids)
	value.ExternalList, value.ExternalCount = e.addList(f.External, ids)
	if f.DropInternal {
		value.Flags |= uint32(bpfobj.MapsServiceFlagsSERVICE_DROP_INTERNAL)
	}
	if f.DropExternal {
		value.Flags |= uint32(bpfobj.MapsServiceFlagsSERVICE_DROP_EXTERNAL)
	}
	if f.KeepSource {
		value.Flags |= uint32(bpfobj.MapsServiceFlagsSERVICE_KEEP_SOURCE)
	}
	e.Services[key] = value
}

// affinitySeconds rounds up: a sub-second affinity is still one.
func affinitySeconds(d time.Duration) uint32 {
	return uint32(min(math.Ceil(d.Seconds()), math.MaxUint32))
}

func (e Entries) addList(list []Backend, ids *IDs) (id, n uint32) {
	if len(list) == 0 {
		return 0, 0
	}
	encoded := make([]bpfobj.MapsBackend, len(list))
	for i, b := range list {
		encoded[i] = bpfobj.MapsBackend{Addr: encodeAddr(b.Addr), Port: htons(b.Port)}
	}
	id = ids.lists.number(encodeBackends(encoded))
	if _, ok := e.Backends[bpfobj.MapsBackendKey{List: id}]; !ok {
		for slot, b := range encoded {
			e.Backends[bpfobj.MapsBackendKey{List: id, Slot: uint32(slot)}] = b
		}
	}
	return id, uint32(len(list))
}

func (e Entries) addRanges(ranges []netip.Prefix, ids *IDs) uint32 {
	if len(ranges) == 0 {
		return 0
	}
	keys := make([]bpfobj.MapsSourceRangeKey, len(ranges))
	for i, p := range ranges {
		p = p.Masked()
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		keys[i] = bpfobj.MapsSourceRangeKey{Prefixlen: uint32(32 + bits), Addr: p.Addr().As16()}
	}
	id := ids.ranges.number(encodeRanges(keys))
	for _, key := range keys {
		key.Set = htonl(id)
		e.Ranges[key] = 1
	}
	return id
}

func encodeBackends(list []bpfobj.MapsBackend) []byte {
	out := make([]byte, 0, 18*len(list))
	for _, b := range list {
		out = append(out, b.Addr.B[:]...)
		out = binary.NativeEndian.AppendUint16(out, b.Port)
	}
	return out
}

// encodeRanges does not depend on the order or on the set's number.
func encodeRanges(keys []bpfobj.MapsSourceRangeKey) []byte {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b bpfobj.MapsSourceRangeKey) int {
		return cmp.Or(cmp.Compare(a.Prefixlen, b.Prefixlen), slices.Compare(a.Addr[:], b.Addr[:]))
	})
	keys = slices.CompactFunc(keys, func(a, b bpfobj.MapsSourceRangeKey) bool {
		return a.Prefixlen == b.Prefixlen && a.Addr == b.Addr
	})
	var out []byte
	for _, k := range keys {
		out = binary.NativeEndian.AppendUint32(out, k.Prefixlen)
		out = append(out, k.Addr[:]...)
	}
	return out
}

func encodeAddr(a netip.Addr) bpfobj.MapsAddr { return bpfobj.MapsAddr{B: a.As16()} }

// htons and htonl turn host order into the network order of map entries.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func htonl(v uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v))
}

func ntohl(v uint32) uint32 { return htonl(v) }
