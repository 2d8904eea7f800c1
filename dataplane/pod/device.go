package pod

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/rtnl"
)

// The addresses every pod sends to when it sends to another: they exist on no
// device, a static neighbour entry stands for them.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// attacher is what Ensure needs of loader.Loader.
type attacher interface {
	EnsureTCX(name, program string, ifindex int, attach ebpf.AttachType) error
}

// LinkNames are the pins of the programs on the device hostIfName.
func LinkNames(hostIfName string) (egress, ingress string) {
	return "pod_egress@" + hostIfName, "pod_ingress@" + hostIfName
}

// Ensure makes the pod's veth pair, with its programs, addresses and routes,
// and returns the ifindex of the host side. The programs stand before the
// device is up: no packet passes without them. mtu is in bytes. The calling
// thread must be in the node's network namespace.
func Ensure(host *rtnl.Namespace, attach attacher, p Pod, mtu int) (ifindex int, err error) {
	ns, err := netns.GetFromPath(p.Netns)
	if err != nil {
		return 0, fmt.Errorf("open network namespace %s: %w", p.Netns, err)
	}
	defer ns.Close()
	inner, err := rtnl.At(ns)
	if err != nil {
		return 0, err
	}
	defer inner.Close()
	defer func() { host.Writes += inner.Writes }()

	outside, inside, err := ensureVeth(host, inner, p, ns, mtu)
	if err != nil {
		return 0, err
	}
	index := outside.Attrs().Index
	egress, ingress := LinkNames(p.HostIfName)
	if err := attach.EnsureTCX(egress, "pod_egress", index, ebpf.AttachTCXIngress); err != nil {
		return 0, err
	}
	if err := attach.EnsureTCX(ingress, "pod_ingress", index, ebpf.AttachTCXEgress); err != nil {
		return 0, err
	}
	if err := ensureInside(inner, inside, outside, p); err != nil {
		return 0, fmt.Errorf("inside the pod: %w", err)
	}
	if err := ensureOutside(host, inside, outside, p); err != nil {
		return 0, err
	}
	return index, nil
}

// ensureVeth finds or creates the pair. A device of that name whose other end
// is not in the pod is a leftover and is replaced.
func ensureVeth(host, inner *rtnl.Namespace, p Pod, ns netns.NsHandle, mtu int) (outside, inside netlink.Link, err error) {
	outside, err = host.LinkByName(p.HostIfName)
	if err == nil {
		inside, err = inner.LinkByName(p.IfName)
		if err == nil && inside.Attrs().ParentIndex == outside.Attrs().Index && outside.Attrs().ParentIndex == inside.Attrs().Index {
			if err := host.EnsureMTU(outside, mtu); err != nil {
				return nil, nil, err
			}
			return outside, inside, inner.EnsureMTU(inside, mtu)
		}
		if err == nil || rtnl.IsNotFound(err) {
			host.Writes++
			err = host.LinkDel(outside)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("replace device %s: %w", p.HostIfName, err)
		}
	} else if !rtnl.IsNotFound(err) {
		return nil, nil, fmt.Errorf("look up device %s: %w", p.HostIfName, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.HostIfName, mtu
	host.Writes++
	err = host.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: p.IfName, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(mtu),
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create veth pair %s with %s in the pod: %w", p.HostIfName, p.IfName, err)
	}
	if outside, err = host.LinkByName(p.HostIfName); err != nil {
		return nil, nil, fmt.Errorf("look up device %s: %w", p.HostIfName, err)
	}
	if inside, err = inner.LinkByName(p.IfName); err != nil {
		return nil, nil, fmt.Errorf("look up device %s in the pod: %w", p.IfName, err)
	}
	return outside, inside, nil
}

func ensureInside(inner *rtnl.Namespace, inside, outside netlink.Link, p Pod) error {
	lo, err := inner.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look up device lo: %w", err)
	}
	if err := inner.EnsureUp(lo); err != nil {
		return err
	}
	if err := inner.EnsureAddr(inside, p.Addrs); err != nil {
		return err
	}
	if err := inner.EnsureUp(inside); err != nil {
		return err
	}
	for _, a := range p.Addrs {
		gateway := Gateway6
		if a.Is4() {
			gateway = Gateway4
		}
		if err := inner.EnsureNeighbour(inside, gateway, outside.Attrs().HardwareAddr); err != nil {
			return err
		}
		if err := inner.EnsureGateway(inside, gateway); err != nil {
			return err
		}
	}
	return nil
}

func ensureOutside(host *rtnl.Namespace, inside, outside netlink.Link, p Pod) error {
	if err := host.EnsureSysctl("1", "net/ipv4/conf", p.HostIfName, "forwarding"); err != nil {
		return err
	}
	if err := host.EnsureSysctl("1", "net/ipv6/conf", p.HostIfName, "force_forwarding"); err != nil {
		return err
	}
	if err := host.EnsureUp(outside); err != nil {
		return err
	}
	for _, a := range p.Addrs {
		if err := host.EnsureNeighbour(outside, a, inside.Attrs().HardwareAddr); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes the pod's device, if it is still there; the other end and
// what is attached go with it.
func Remove(host *rtnl.Namespace, hostIfName string) error {
	link, err := host.LinkByName(hostIfName)
	if rtnl.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up device %s: %w", hostIfName, err)
	}
	host.Writes++
	if err := host.LinkDel(link); err != nil {
		return fmt.Errorf("delete device %s: %w", hostIfName, err)
	}
	return nil
}

// Entries are the map entries of a pod whose host device is ifindex.
func Entries(p Pod, ifindex int) map[bpfobj.MapsAddr]bpfobj.MapsEndpoint {
	entries := map[bpfobj.MapsAddr]bpfobj.MapsEndpoint{}
	for _, a := range p.Addrs {
		entries[bpfobj.MapsAddr{B: a.As16()}] = bpfobj.MapsEndpoint{Ifindex: uint32(ifindex)}
	}
	return entries
}

// Routes are the node's routes to a pod whose host device is ifindex.
// nodeAddrs are the node's own addresses; the first of each family becomes
// the source of the node's packets to the pod.
func Routes(p Pod, ifindex int, nodeAddrs []netip.Addr) []rtnl.Route {
	var routes []rtnl.Route
	for _, a := range p.Addrs {
		r := rtnl.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Device: ifindex}
		for _, own := range nodeAddrs {
			if own.Is4() == a.Is4() {
				r.Src = own
				break
			}
		}
		routes = append(routes, r)
	}
	return routes
}
