// Package service holds the load-balanced Services of a node as plain values,
// their encoding to map entries, and the order in which those are written.
//
//	desired.Compute ──► []Frontend ──► map entries ──► kernel
package service

import (
	"net/netip"
	"slices"
	"time"
)

// Protocol is an IP protocol number (IANA "Protocol Numbers"), as in the
// IPv4 protocol and IPv6 next-header fields.
type Protocol uint8

// The protocols a Service can have (Kubernetes core/v1 Protocol).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Kind says what a frontend's address is.
type Kind uint8

// The kinds of frontend.
const (
	ClusterIP Kind = iota + 1
	NodePort
	ExternalIP
	LoadBalancer
	HostPort
)

// Frontend is an address, port and protocol that clients use. Its key is
// (Addr, Port, Protocol); two frontends of a State never share one.
type Frontend struct {
	// Service names the Service port for people: "namespace/name:port".
	Service  string
	Kind     Kind
	Addr     netip.Addr
	Port     uint16 // host byte order
	Protocol Protocol

	// Internal are the backends for connections that start on this node
	// (its pods and its own processes); External for those that arrive from
	// outside. They differ under internalTrafficPolicy or
	// externalTrafficPolicy Local. Both are sorted and without duplicates.
	Internal []Backend
	External []Backend

	// DropInternal and DropExternal drop instead of reject when the list is
	// empty: internalTrafficPolicy or externalTrafficPolicy Local on a node
	// without a local backend. Local processes, which connect through the
	// socket, get ETIMEDOUT at once.
	DropInternal, DropExternal bool
	// KeepSource leaves the client's address in place for connections from
	// outside (externalTrafficPolicy Local); otherwise it is replaced by a
	// node address so that answers come back through this node.
	KeepSource bool
	// Affinity is how long a client address sticks to a backend
	// (sessionAffinity ClientIP); zero means no affinity.
	Affinity time.Duration
	// SourceRanges, when not empty, are the only client prefixes served
	// (loadBalancerSourceRanges); others are dropped.
	SourceRanges []netip.Prefix
}

// Backend is one address and port that serves a Service.
type Backend struct {
	Addr netip.Addr
	Port uint16 // host byte order
}

// Equal reports whether both are the same frontend with the same behaviour.
func (f *Frontend) Equal(g *Frontend) bool {
	return f.Service == g.Service && f.Kind == g.Kind && f.Addr == g.Addr && f.Port == g.Port &&
		f.Protocol == g.Protocol && f.DropInternal == g.DropInternal && f.DropExternal == g.DropExternal && f.KeepSource == g.KeepSource &&
		f.Affinity == g.Affinity && slices.Equal(f.Internal, g.Internal) &&
		slices.Equal(f.External, g.External) && slices.Equal(f.SourceRanges, g.SourceRanges)
}

func equal(a, b []Frontend) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(&b[i]) {
			return false
		}
	}
	return true
}
