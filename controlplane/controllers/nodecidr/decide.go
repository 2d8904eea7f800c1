package nodecidr

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// plan is what one pass does.
type plan struct {
	Assign    []assignment
	Exhausted []*corev1.Node
}

type assignment struct {
	Node  *corev1.Node
	CIDRs []string
}

// decide gives the lowest free part of each range to each node without pod
// CIDRs, older nodes first. A node gets a part of every range or nothing.
func decide(ranges []Range, nodes []*corev1.Node) plan {
	if len(ranges) == 0 {
		return plan{}
	}
	var taken []netip.Prefix
	var waiting []*corev1.Node
	for _, node := range nodes {
		if len(node.Spec.PodCIDRs) == 0 {
			if node.DeletionTimestamp == nil {
				waiting = append(waiting, node)
			}
			continue
		}
		for _, cidr := range node.Spec.PodCIDRs {
			if prefix, err := netip.ParsePrefix(cidr); err == nil {
				taken = append(taken, prefix.Masked())
			}
		}
	}
	slices.SortFunc(waiting, func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return allot(ranges, taken, waiting)
}

func allot(ranges []Range, taken []netip.Prefix, waiting []*corev1.Node) plan {
	var pools []*pool
	for _, r := range ranges {
		pools = append(pools, newPool(r, taken))
	}
	var p plan
	for _, node := range waiting {
		var cidrs []string
		for _, pool := range pools {
			if prefix, ok := pool.take(); ok {
				cidrs = append(cidrs, prefix.String())
			}
		}
		if len(cidrs) == len(pools) {
			p.Assign = append(p.Assign, assignment{node, cidrs})
		} else {
			p.Exhausted = append(p.Exhausted, node)
		}
	}
	return p
}

// pool walks once through a range.
type pool struct {
	Range
	next  netip.Prefix
	taken []netip.Prefix // those inside the range, in order of their addresses
}

func newPool(r Range, taken []netip.Prefix) *pool {
	p := &pool{Range: r, next: netip.PrefixFrom(r.Cluster.Addr(), r.NodeBits)}
	for _, prefix := range taken {
		if prefix.Overlaps(r.Cluster) {
			p.taken = append(p.taken, prefix)
		}
	}
	slices.SortFunc(p.taken, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return p
}

// take returns the next free part, or false if there is none left.
func (p *pool) take() (netip.Prefix, bool) {
	for p.next.IsValid() && p.Cluster.Contains(p.next.Addr()) {
		candidate := p.next
		p.next = after(candidate)
		if blocker, blocked := p.blocker(candidate); !blocked {
			return candidate, true
		} else if blocker.Bits() < candidate.Bits() {
			// A node of another mask size holds more than this part: go past it.
			p.next = netip.PrefixFrom(after(blocker).Addr(), p.NodeBits)
		}
	}
	return netip.Prefix{}, false
}

// blocker returns the taken prefix that overlaps candidate. Candidates come in
// ascending order, so what lies behind them is dropped.
func (p *pool) blocker(candidate netip.Prefix) (netip.Prefix, bool) {
	for len(p.taken) > 0 {
		first := p.taken[0]
		switch {
		case first.Overlaps(candidate):
			return first, true
		case first.Addr().Less(candidate.Addr()):
			p.taken = p.taken[1:]
		default:
			return netip.Prefix{}, false
		}
	}
	return netip.Prefix{}, false
}

// after returns the prefix of the same size that follows, invalid at the end
// of the address space.
func after(prefix netip.Prefix) netip.Prefix {
	addr := prefix.Addr().AsSlice()
	for bit := prefix.Bits() - 1; bit >= 0; bit-- {
		mask := byte(1) << (7 - bit%8)
		addr[bit/8] ^= mask
		if addr[bit/8]&mask != 0 { // no carry
			next, _ := netip.AddrFromSlice(addr)
			return netip.PrefixFrom(next, prefix.Bits())
		}
	}
	return netip.Prefix{}
}
