// Package pod is the network side of a local pod: its device, its address,
// its routes, and the programs on its device.
package pod

import (
	"net/netip"
	"slices"
)

// Pod is one local pod sandbox as the kernel should see it.
type Pod struct {
	// Name is "namespace/name", for people.
	Name string
	// SandboxID is the container runtime's identifier of the sandbox
	// (CNI_CONTAINERID); it is the key of a Pod.
	SandboxID string
	// Netns is the path of the pod's network namespace.
	Netns string
	// IfName is the device inside the pod, HostIfName its peer on the node
	// (at most 15 bytes, IFNAMSIZ in include/uapi/linux/if.h).
	IfName     string
	HostIfName string
	// Addrs are the pod's addresses, at most one per family.
	Addrs []netip.Addr
}

// Equal reports whether both describe the same pod in the same way.
func (p Pod) Equal(q Pod) bool {
	return p.Name == q.Name && p.SandboxID == q.SandboxID && p.Netns == q.Netns &&
		p.IfName == q.IfName && p.HostIfName == q.HostIfName && slices.Equal(p.Addrs, q.Addrs)
}
