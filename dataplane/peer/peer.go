// Package peer is the other nodes of the cluster: how their pods are reached.
package peer

import "net/netip"

// Peer is another node and the pod addresses behind it.
type Peer struct {
	// Node is the Node object's name, the key of a Peer.
	Node string
	// Addr is the node's address on the underlay: tunnel endpoint, or next
	// hop with native routing.
	Addr netip.Addr
	// PodCIDRs are the prefixes of the node's pods, of either family.
	PodCIDRs []netip.Prefix
}
