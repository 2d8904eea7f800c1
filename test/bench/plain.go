package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The devices of a plain topology are as large as the cluster's.
const (
	podMTU    = 1450
	vxlanPort = 8472
)

// podGateway is where plain pods send everything; a static neighbour entry
// stands for it, as in the cluster.
var podGateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// plain is a pair of nodes without Weft: pods on veth pairs that the host's
// stack routes to, and a VXLAN device with a static far end between the nodes,
// as flannel wires them. Its namespaces have no names and end with the last
// process in them.
type plain struct {
	index  byte // tells apart the addresses of several
	nodes  [2]*plainNode
	client place
	// servers are on the client's node and on the other one.
	servers [2]plainPod
}

type plainNode struct {
	netns   netns.NsHandle
	handle  *netlink.Handle
	addr    netip.Addr   // on the bridge
	pods    netip.Prefix // of its pods
	overlay *netlink.Vxlan
}

type plainPod struct {
	place
	addr netip.Addr
}

// podNetwork is the network of all pods of the topology.
func (p *plain) podNetwork() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 240 - p.index, 0, 0}), 16)
}

// newPlain makes the topology on the cluster's bridge.
func newPlain(bridge string, subnet netip.Prefix, index byte) (*plain, error) {
	p := &plain{index: index}
	err := p.wire(bridge, subnet)
	if err != nil {
		err = errors.Join(fmt.Errorf("make plain nodes: %w", err), p.close())
	}
	return p, err
}

func (p *plain) wire(bridge string, subnet netip.Prefix) error {
	for i := range p.nodes {
		node := p.planNode(subnet, byte(i))
		p.nodes[i] = node
		if err := node.create(); err != nil {
			return err
		}
		port := fmt.Sprintf("wb-%s%d%d", strings.TrimPrefix(bridge, "weft-"), p.index, i)
		if err := node.joinBridge(bridge, port, subnet); err != nil {
			return err
		}
		if err := node.addOverlay(100 + int(p.index)); err != nil {
			return err
		}
	}
	if err := errors.Join(p.nodes[0].addPeer(p.nodes[1]), p.nodes[1].addPeer(p.nodes[0])); err != nil {
		return err
	}
	client, err := p.nodes[0].addPod(1)
	if err != nil {
		return err
	}
	p.client = client.place
	for i, node := range p.nodes {
		if p.servers[i], err = node.addPod(2); err != nil {
			return err
		}
	}
	return nil
}

// planNode gives a node its addresses. Those from 100 on are free on the
// bridge: Weft's nodes begin at 11.
func (p *plain) planNode(subnet netip.Prefix, i byte) *plainNode {
	host := subnet.Addr().As4()
	host[3] = 100 + 10*p.index + i
	pods := p.podNetwork().Addr().As4()
	pods[2] = i
	return &plainNode{addr: netip.AddrFrom4(host), pods: netip.PrefixFrom(netip.AddrFrom4(pods), 24)}
}

// create makes the node's namespace, which forwards.
func (n *plainNode) create() error {
	var err error
	if n.netns, err = newNetns(); err != nil {
		return err
	}
	if n.handle, err = netlink.NewHandleAt(n.netns); err != nil {
		return errors.Join(err, n.netns.Close())
	}
	return inside(n.netns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
}

func (n *plainNode) close() error {
	if n.handle == nil {
		return nil
	}
	n.handle.Close()
	return n.netns.Close()
}

func (n *plainNode) joinBridge(bridge, port string, subnet netip.Prefix) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port, master.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.netns)}); err != nil {
		return err
	}
	outside, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	eth0, err := n.up("eth0")
	if err != nil {
		return err
	}
	if _, err := n.up("lo"); err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(outside),
		n.handle.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.addr, subnet.Bits()))}))
}

func (n *plainNode) up(device string) (netlink.Link, error) {
	link, err := n.handle.LinkByName(device)
	if err != nil {
		return nil, err
	}
	return link, n.handle.LinkSetUp(link)
}

func (n *plainNode) addOverlay(vni int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "vxlan", podMTU
	err := n.handle.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, SrcAddr: n.addr.AsSlice(), Port: vxlanPort})
	if err != nil {
		return err
	}
	link, err := n.up("vxlan")
	if err != nil {
		return err
	}
	n.overlay = link.(*netlink.Vxlan)
	own := netip.PrefixFrom(n.pods.Addr(), 32) // the source of the node's own packets
	return n.handle.AddrAdd(link, &netlink.Addr{IPNet: ipNet(own)})
}

// addPeer routes to the other node's pods: a gateway on the VXLAN device, its
// MAC address, and the node that has that.
func (n *plainNode) addPeer(peer *plainNode) error {
	index, mac := n.overlay.Attrs().Index, peer.overlay.Attrs().HardwareAddr
	gateway := peer.pods.Addr().AsSlice()
	return errors.Join(
		n.handle.NeighAdd(&netlink.Neigh{LinkIndex: index, IP: gateway, HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
		n.handle.NeighAppend(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			IP: peer.addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
		n.handle.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(peer.pods), Gw: gateway, Flags: int(netlink.FLAG_ONLINK)}))
}

// addPod makes a pod with the given last byte of its address.
func (n *plainNode) addPod(last byte) (plainPod, error) {
	addr := n.pods.Addr().As4()
	addr[3] = last
	pod := plainPod{addr: netip.AddrFrom4(addr)}
	var err error
	if pod.netns, err = newNetns(); err != nil {
		return pod, err
	}
	inner, err := netlink.NewHandleAt(pod.netns)
	if err != nil {
		return pod, err
	}
	defer inner.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = fmt.Sprintf("pod%d", last), podMTU
	err = n.handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.netns), PeerMTU: podMTU})
	if err != nil {
		return pod, err
	}
	outer, err := n.up(attrs.Name)
	if err != nil {
		return pod, err
	}
	eth0, err := inner.LinkByName("eth0")
	if err != nil {
		return pod, err
	}
	lo, err := inner.LinkByName("lo")
	if err != nil {
		return pod, err
	}
	neighbour := func(link, other netlink.Link, ip netip.Addr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip.AsSlice(),
			HardwareAddr: other.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT}
	}
	own := ipNet(netip.PrefixFrom(pod.addr, 32))
	for _, step := range []func() error{
		func() error { return inner.LinkSetUp(lo) },
		func() error { return inner.AddrAdd(eth0, &netlink.Addr{IPNet: own}) },
		func() error { return inner.LinkSetUp(eth0) },
		func() error { return inner.NeighAdd(neighbour(eth0, outer, podGateway)) },
		func() error {
			return inner.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: podGateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		},
		func() error { return n.handle.NeighAdd(neighbour(outer, eth0, pod.addr)) },
		func() error {
			return n.handle.RouteAdd(&netlink.Route{LinkIndex: outer.Attrs().Index, Dst: own, Scope: netlink.SCOPE_LINK})
		},
	} {
		if err := step(); err != nil {
			return pod, err
		}
	}
	return pod, nil
}

// close lets go of the namespaces. The processes in them must have ended.
func (p *plain) close() error {
	var errs []error
	for _, node := range p.nodes {
		if node != nil {
			errs = append(errs, node.close())
		}
	}
	for _, pod := range append(p.servers[:], plainPod{place: p.client}) {
		if pod.netns > 0 {
			errs = append(errs, pod.netns.Close())
		}
	}
	return errors.Join(errs...)
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
