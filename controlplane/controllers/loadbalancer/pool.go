package loadbalancer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/controlplane/api"
)

// span is all addresses from First to Last, of one family.
type span struct{ First, Last netip.Addr }

// parseSpan reads a prefix, a range or a single address.
func parseSpan(text string) (span, error) {
	var s span
	if first, last, isRange := strings.Cut(text, "-"); isRange {
		var err1, err2 error
		s.First, err1 = netip.ParseAddr(first)
		s.Last, err2 = netip.ParseAddr(last)
		if err := errors.Join(err1, err2); err != nil {
			return span{}, err
		}
	} else if prefix, err := netip.ParsePrefix(text); err == nil {
		s = span{prefix.Masked().Addr(), lastOf(prefix)}
	} else {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return span{}, fmt.Errorf("%q is neither a prefix nor a range nor an address", text)
		}
		s = span{addr, addr}
	}
	return s, s.validate(text)
}

func (s span) validate(text string) error {
	switch {
	case s.First.Is4() != s.Last.Is4():
		return fmt.Errorf("%q has addresses of two families", text)
	case s.Last.Less(s.First):
		return fmt.Errorf("%q ends before it begins", text)
	}
	for _, addr := range []netip.Addr{s.First, s.Last} {
		if addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			return fmt.Errorf("%q: %s is no address that clients can be routed to", text, addr)
		}
	}
	return nil
}

// lastOf returns the last address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	addr := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < 8*len(addr); bit++ {
		addr[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ := netip.AddrFromSlice(addr)
	return last
}

func (s span) contains(addr netip.Addr) bool {
	return s.First.Is4() == addr.Is4() && !addr.Less(s.First) && !s.Last.Less(addr)
}

// size is how many addresses s has, math.MaxInt64 if more than that.
func (s span) size() int64 {
	first, last := s.First.As16(), s.Last.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:]), 0)
	high, _ := bits.Sub64(binary.BigEndian.Uint64(last[:8]), binary.BigEndian.Uint64(first[:8]), borrow)
	if high > 0 || low >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(low) + 1
}

// pool is a LoadBalancerPool ready for use.
type pool struct {
	name       string
	spans      []span
	namespaces []string
	selector   labels.Selector
	// next is, by family, where to go on looking: within one pass addresses are
	// only taken, so what lies behind is not free.
	next map[bool]netip.Addr
}

// newPool reads a pool's spec. Its errors name the field.
func newPool(object *api.LoadBalancerPool) (*pool, error) {
	p := &pool{name: object.Name, namespaces: object.Spec.Namespaces, selector: labels.Everything(), next: map[bool]netip.Addr{}}
	for i, text := range object.Spec.Addresses {
		s, err := parseSpan(text)
		if err != nil {
			return nil, fmt.Errorf("spec.addresses[%d]: %w", i, err)
		}
		if slices.ContainsFunc(p.spans, func(other span) bool { return s.contains(other.First) || other.contains(s.First) }) {
			return nil, fmt.Errorf("spec.addresses[%d]: %q overlaps with another", i, text)
		}
		p.spans = append(p.spans, s)
	}
	if object.Spec.ServiceSelector != nil {
		selector, err := metav1.LabelSelectorAsSelector(object.Spec.ServiceSelector)
		if err != nil {
			return nil, fmt.Errorf("spec.serviceSelector: %w", err)
		}
		p.selector = selector
	}
	slices.SortFunc(p.spans, func(a, b span) int { return a.First.Compare(b.First) })
	return p, nil
}

// allows reports whether a Service may use the pool.
func (p *pool) allows(svc *corev1.Service) bool {
	return (len(p.namespaces) == 0 || slices.Contains(p.namespaces, svc.Namespace)) && p.selector.Matches(labels.Set(svc.Labels))
}

func (p *pool) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(p.spans, func(s span) bool { return s.contains(addr) })
}

func (p *pool) hasFamily(is4 bool) bool {
	return slices.ContainsFunc(p.spans, func(s span) bool { return s.First.Is4() == is4 })
}

// size is how many addresses the pool has, math.MaxInt64 if more than that.
func (p *pool) size() int64 {
	var total int64
	for _, s := range p.spans {
		size := s.size()
		if total > math.MaxInt64-size {
			return math.MaxInt64
		}
		total += size
	}
	return total
}

// free returns the lowest address of a family that is not taken.
func (p *pool) free(is4 bool, taken map[netip.Addr]string) (netip.Addr, bool) {
	for _, s := range p.spans {
		if s.First.Is4() != is4 {
			continue
		}
		addr := s.First
		if from := p.next[is4]; from.IsValid() && addr.Less(from) {
			addr = from
		}
		for ; s.contains(addr); addr = addr.Next() {
			if _, isTaken := taken[addr]; !isTaken {
				p.next[is4] = addr.Next()
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}
