// Package dataplane makes the kernel of one node equal to a plain value.
//
//	State ──Apply──► diff against pinned maps, links, devices, routes ──► kernel
//
// It knows neither Kubernetes nor the agent. The pinned maps and links are
// its only state: Open takes over what an earlier process left, and a second
// Apply of the same State writes nothing.
package dataplane

import (
	"net/netip"

	"weft.dev/weft/dataplane/peer"
	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/service"
)

// Routing is how packets reach pods on other nodes.
type Routing string

// The ways of routing between nodes.
const (
	// VXLAN wraps packets between nodes (RFC 7348, port 8472 as Linux has it).
	VXLAN Routing = "vxlan"
	// Native installs plain routes; the nodes must share a layer-2 network.
	Native Routing = "native"
)

// Config is what stays the same while a node's dataplane is open.
type Config struct {
	// PinDir is a directory on a bpffs, owned by this dataplane alone.
	PinDir string
	// CgroupPath is the cgroup2 directory whose processes get socket-level
	// load balancing: the root on a real node.
	CgroupPath string
	// Uplink is the device that carries the node's address; empty means the
	// device that has Node.Addresses[0].
	Uplink  string
	Routing Routing
}

// State is everything the kernel of this node should do.
type State struct {
	Node Node
	// Pods are the local pods that have their own network namespace.
	Pods []pod.Pod
	// Peers are the other nodes.
	Peers []peer.Peer
	// Services are the frontends this node answers for.
	Services []service.Frontend
}

// Node is this node's own addressing.
type Node struct {
	// Addresses are the node's own; the first of each family is tunnel
	// endpoint and masquerade source.
	Addresses []netip.Addr
	// PodCIDRs are the prefixes local pod addresses come from.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs hold every pod of the cluster: traffic of local pods to
	// other destinations leaves with the node's address (masquerade).
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs hold every ClusterIP: traffic to an address in it that no
	// frontend has is rejected rather than sent out.
	ServiceCIDRs []netip.Prefix
}

// PodError is what kept a single pod from being in place. Apply carries on
// with the others and returns all of them joined.
type PodError struct {
	SandboxID string // pod.Pod.SandboxID
	Err       error
}

func (e *PodError) Error() string { return "pod sandbox " + e.SandboxID + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PodError) Unwrap() error { return e.Err }

// ServiceError is what kept some Services from being in place. The pods of
// the State are in place all the same, unless a PodError says otherwise.
type ServiceError struct{ Err error }

func (e *ServiceError) Error() string { return "services: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ServiceError) Unwrap() error { return e.Err }

// RemovalError is what kept something from being removed that the State no
// longer has. All that it has is in place.
type RemovalError struct{ Err error }

func (e *RemovalError) Error() string { return "remove what is left: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *RemovalError) Unwrap() error { return e.Err }
