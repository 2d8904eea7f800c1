package ipam

import (
	"iter"
	"net/netip"
)

// walk yields every address of the prefixes that a pod may have, once each:
// first those behind last, then from the start up to and including last.
func walk(prefixes []netip.Prefix, last netip.Addr) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		start := 0 // the prefix that holds last
		for i, p := range prefixes {
			if p.Contains(last) {
				start = i
			}
		}
		inside := prefixes[start].Contains(last)
		if inside && !each(prefixes[start], last.Next(), netip.Addr{}, yield) {
			return
		}
		for i := range prefixes {
			p := prefixes[(start+i)%len(prefixes)]
			if i == 0 && inside {
				continue
			}
			if !each(p, p.Addr(), netip.Addr{}, yield) {
				return
			}
		}
		if inside {
			each(prefixes[start], prefixes[start].Addr(), last, yield)
		}
	}
}

// each yields the usable addresses of p from first up to and including last
// (the zero Addr: to the end), and reports whether the caller wants more.
func each(p netip.Prefix, first, last netip.Addr, yield func(netip.Addr) bool) bool {
	for addr := first; p.Contains(addr); addr = addr.Next() {
		if isUsable(p, addr) && !yield(addr) {
			return false
		}
		if addr == last {
			break
		}
	}
	return true
}

// isUsable says whether a pod may have addr: not the network address (in
// IPv6 the subnet-router anycast address, RFC 4291 section 2.6.1), not the one
// after it, which people expect to be the node's, and not IPv4's broadcast
// address. Prefixes of up to two addresses have no such exceptions (RFC 3021).
func isUsable(p netip.Prefix, addr netip.Addr) bool {
	if p.Addr().BitLen()-p.Bits() <= 1 {
		return true
	}
	network := p.Masked().Addr()
	isBroadcast := addr.Is4() && !p.Contains(addr.Next())
	return addr != network && addr != network.Next() && !isBroadcast
}
