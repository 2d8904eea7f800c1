package peer

import (
	"net/netip"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/rtnl"
)

// Own is this node's addressing (see dataplane.Node).
type Own struct {
	Addresses    []netip.Addr
	PodCIDRs     []netip.Prefix
	ClusterCIDRs []netip.Prefix
	ServiceCIDRs []netip.Prefix
}

// Entries says what every range of addresses is: map entries for the
// longest-prefix match of bpf/lib/maps.h. Where ranges are equal, the more
// telling kind wins.
func Entries(own Own, peers []Peer) map[bpfobj.MapsNetworkKey]bpfobj.MapsNetwork {
	entries := map[bpfobj.MapsNetworkKey]bpfobj.MapsNetwork{}
	put := func(p netip.Prefix, kind bpfobj.MapsNetworkKind, node netip.Addr) {
		entry := bpfobj.MapsNetwork{Kind: uint32(kind)}
		if node.IsValid() {
			entry.Node.B = node.As16()
		}
		entries[Key(p)] = entry
	}
	for _, p := range own.ClusterCIDRs {
		put(p, bpfobj.MapsNetworkKindNETWORK_CLUSTER, netip.Addr{})
	}
	for _, p := range own.ServiceCIDRs {
		put(p, bpfobj.MapsNetworkKindNETWORK_SERVICE, netip.Addr{})
	}
	for _, peer := range peers {
		for _, p := range peer.PodCIDRs {
			put(p, bpfobj.MapsNetworkKindNETWORK_PEER_POD, peer.Addr)
		}
		put(host(peer.Addr), bpfobj.MapsNetworkKindNETWORK_PEER_NODE, peer.Addr)
	}
	for _, p := range own.PodCIDRs {
		put(p, bpfobj.MapsNetworkKindNETWORK_LOCAL_POD, netip.Addr{})
	}
	for _, a := range own.Addresses {
		put(host(a), bpfobj.MapsNetworkKindNETWORK_LOCAL_NODE, netip.Addr{})
	}
	return entries
}

// Key is the map key of a prefix: 96 bits more for IPv4, which is mapped.
func Key(p netip.Prefix) bpfobj.MapsNetworkKey {
	p = p.Masked()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return bpfobj.MapsNetworkKey{Prefixlen: uint32(bits), Addr: p.Addr().As16()}
}

// Routes are the node's own routes to the pods of its peers: into the
// overlay device, or, if that is 0, by way of the peer on the uplink. Own pod
// ranges end here: an address that no pod has is unreachable.
func Routes(own Own, peers []Peer, overlay, uplink int) []rtnl.Route {
	var routes []rtnl.Route
	for _, peer := range peers {
		for _, p := range peer.PodCIDRs {
			r := rtnl.Route{Dst: p.Masked(), Device: overlay, Src: own.source(p.Addr())}
			if overlay == 0 {
				r.Device, r.Via = uplink, peer.Addr
			}
			routes = append(routes, r)
		}
	}
	for _, p := range own.PodCIDRs {
		routes = append(routes, rtnl.Route{Dst: p.Masked(), Unreachable: true})
	}
	return routes
}

// source is the first own address of the family of a.
func (o Own) source(a netip.Addr) netip.Addr {
	for _, own := range o.Addresses {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
