// Package desired computes what this node's kernel should do from API objects
// and the sandboxes the container runtime told us of. It is pure: the same
// objects in any order give the same State.
//
//	Services, EndpointSlices, Nodes ─┐
//	local sandboxes, settings ───────┴─► Compute ──► dataplane.State
//
// The rules are those of the Kubernetes Service documentation and, where that
// is silent, of kube-proxy (k8s.io/kubernetes/pkg/proxy).
package desired

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weft.dev/weft/dataplane"
	"weft.dev/weft/dataplane/peer"
	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/service"
)

// Settings is what the objects do not say.
type Settings struct {
	// NodeName is this node.
	NodeName string
	// NodeAddresses are this node's own, the first of each family first; if
	// empty they are taken from the Node object.
	NodeAddresses []netip.Addr
	// ClusterCIDRs hold every pod, ServiceCIDRs every ClusterIP.
	ClusterCIDRs []netip.Prefix
	ServiceCIDRs []netip.Prefix
	// ClusterDNS are the addresses pods ask for names; they are answered by
	// this node itself on DNSPort. Empty where a Service of the cluster does
	// that.
	ClusterDNS []netip.Addr
	DNSPort    uint16
}

// Inputs is all that Compute looks at. Objects are never modified.
type Inputs struct {
	Settings
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	Nodes          []*corev1.Node
	Sandboxes      []Sandbox
}

// Sandbox is a local pod sandbox as the runtime described it to CNI ADD.
type Sandbox struct {
	pod.Pod
	HostPorts []HostPort
}

// HostPort sends a port of the node to the pod.
type HostPort struct {
	// HostIP limits it to one node address; the zero Addr and unspecified
	// addresses mean all.
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
	Protocol      service.Protocol
}

// Compute returns what this node's kernel should do, sorted.
func Compute(in Inputs) dataplane.State { return new(Memo).Compute(in) }

// Compute is the function of that name. The result shares memory with results
// before and after: it must not be modified.
func (m *Memo) Compute(in Inputs) dataplane.State {
	self := selfNode(in.NodeName, in.Nodes)
	addresses := in.NodeAddresses
	if len(addresses) == 0 {
		addresses = internalIPs(self)
	}
	state := dataplane.State{
		Node: dataplane.Node{
			Addresses:    addresses,
			PodCIDRs:     podCIDRs(self),
			ClusterCIDRs: in.ClusterCIDRs,
			ServiceCIDRs: in.ServiceCIDRs,
		},
		Pods:  pods(in.Sandboxes),
		Peers: peers(in.NodeName, in.Nodes),
	}
	node := localNode{name: in.NodeName, addresses: addresses, zone: self.Labels[corev1.LabelTopologyZone]}
	f := frontends{}
	f.addDNS(node, in.ClusterDNS, in.DNSPort)
	for _, front := range m.services(node, in.Services, in.EndpointSlices) {
		f.add(front)
	}
	f.addHostPorts(node, in.Sandboxes)
	state.Services = f.sorted()
	return state
}

// localNode is what service rules need to know of this node.
type localNode struct {
	name      string
	zone      string
	addresses []netip.Addr
}

// pods is sorted by sandbox ID, the key of a Pod.
func pods(sandboxes []Sandbox) []pod.Pod {
	var ps []pod.Pod
	for _, s := range sandboxes {
		ps = append(ps, s.Pod)
	}
	slices.SortFunc(ps, func(a, b pod.Pod) int { return cmp.Compare(a.SandboxID, b.SandboxID) })
	return slices.CompactFunc(ps, func(a, b pod.Pod) bool { return a.SandboxID == b.SandboxID })
}

// selfNode returns this node's object, an empty one while there is none.
func selfNode(name string, nodes []*corev1.Node) *corev1.Node {
	for _, n := range nodes {
		if n.Name == name {
			return n
		}
	}
	return &corev1.Node{}
}

// peers are the other nodes, also those without pods yet: traffic to a node's
// own address is never masqueraded.
func peers(self string, nodes []*corev1.Node) []peer.Peer {
	var ps []peer.Peer
	for _, n := range nodes {
		addrs := internalIPs(n)
		if n.Name == self || len(addrs) == 0 {
			continue
		}
		ps = append(ps, peer.Peer{Node: n.Name, Addr: preferIPv4(addrs), PodCIDRs: podCIDRs(n)})
	}
	slices.SortFunc(ps, func(a, b peer.Peer) int { return cmp.Compare(a.Node, b.Node) })
	return slices.CompactFunc(ps, func(a, b peer.Peer) bool { return a.Node == b.Node })
}

func preferIPv4(addrs []netip.Addr) netip.Addr {
	if i := slices.IndexFunc(addrs, netip.Addr.Is4); i >= 0 {
		return addrs[i]
	}
	return addrs[0]
}

// internalIPs keeps the order of the Node object: the first of each family is
// the node's primary address.
func internalIPs(n *corev1.Node) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if addr, err := netip.ParseAddr(a.Address); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// PodCIDRs returns the pod prefixes of the named node: none while it, or its
// spec.podCIDRs, does not exist yet.
func PodCIDRs(name string, nodes []*corev1.Node) []netip.Prefix {
	return podCIDRs(selfNode(name, nodes))
}

func podCIDRs(n *corev1.Node) []netip.Prefix {
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	var prefixes []netip.Prefix
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}
