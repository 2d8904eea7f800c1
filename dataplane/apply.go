package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/peer"
	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/rtnl"
)

// vxlanOverhead is what a tunnel takes of the uplink's MTU: outer IPv4 or
// IPv6, UDP, VXLAN and inner Ethernet headers, in bytes (RFC 7348).
const (
	vxlanOverhead4 = 20 + 8 + 8 + 14
	vxlanOverhead6 = 40 + 8 + 8 + 14
)

// Apply makes the kernel equal to s. It adds before it deletes and writes
// what is referred to before what refers to it, so that traffic that is
// allowed before and after flows in between. It carries on after an error and
// returns all of them joined: a PodError, ServiceError or RemovalError where
// only that is missing. Calling it again finishes the work.
func (d *Dataplane) Apply(ctx context.Context, s State) error {
	d.mu.Lock()
	defer d.mu.Unlock()

	devices, err := d.ensureDevices(s.Node)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	networks := peer.Entries(peer.Own(s.Node), s.Peers)
	var errs []error
	step := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	step(d.count(d.node.Add(map[uint32]bpfobj.MapsNode{0: devices.entry(s.Node)})))
	step(d.count(d.networks.Add(networks)))
	if err := errors.Join(d.count(d.services.Apply(s.Services)), d.endStaleSockets(s.Services)); err != nil {
		step(&ServiceError{err})
	}
	step(d.attachNode(devices))
	step(d.attachSockets())

	endpoints, routes, err := d.ensurePods(ctx, s, devices.podMTU)
	step(err)
	step(d.setRoutes(append(routes, peer.Routes(peer.Own(s.Node), s.Peers, devices.overlay, devices.uplink)...)))

	if err := errors.Join(
		d.count(d.endpoints.Prune(endpoints)),
		d.removePods(s.Pods),
		d.count(d.networks.Prune(networks)),
	); err != nil {
		step(&RemovalError{err})
	}
	if len(errs) == 0 && !d.current {
		step(d.loader.PruneOld())
		d.current = true
	}
	return errors.Join(errs...)
}

// count adds the writes of a map operation to the total.
func (d *Dataplane) count(writes int, err error) error {
	d.mapWrites += writes
	return err
}

// nodeDevices are the devices of the node itself.
type nodeDevices struct {
	uplink  int // ifindex
	overlay int // ifindex; 0 with native routing
	podMTU  int // bytes
}

// entry is what programs need to know of the node.
func (n nodeDevices) entry(node Node) bpfobj.MapsNode {
	e := bpfobj.MapsNode{UplinkIfindex: uint32(n.uplink), OverlayIfindex: uint32(n.overlay)}
	for _, a := range slices.Backward(node.Addresses) { // the first one wins
		if a.Is4() {
			e.Addr4.B = a.As16()
		} else {
			e.Addr6.B = a.As16()
		}
	}
	return e
}

// ensureDevices finds the uplink and makes the overlay device.
//
// Sysctls written, of these devices alone: net.ipv4.conf.DEV.forwarding = 1
// and net.ipv6.conf.DEV.force_forwarding = 1 (pods' packets are routed), and
// net.ipv4.conf.weft_vxlan.rp_filter = 2 (packets of other nodes' own
// addresses come through the tunnel, though the route back does not).
func (d *Dataplane) ensureDevices(node Node) (nodeDevices, error) {
	if len(node.Addresses) == 0 {
		return nodeDevices{}, errors.New("State.Node.Addresses is empty")
	}
	uplink, err := d.findUplink(node.Addresses[0])
	if err != nil {
		return nodeDevices{}, err
	}
	if kind := uplink.Attrs().EncapType; kind != "ether" {
		return nodeDevices{}, fmt.Errorf("uplink %s is of type %s: the programs read Ethernet headers", uplink.Attrs().Name, kind)
	}
	devices := nodeDevices{uplink: uplink.Attrs().Index, podMTU: uplink.Attrs().MTU}
	if err := d.forward(uplink.Attrs().Name); err != nil {
		return nodeDevices{}, err
	}
	if d.cfg.Routing == Native {
		return devices, pod.Remove(d.net, OverlayDevice)
	}
	devices.podMTU -= vxlanOverhead4
	if node.Addresses[0].Is6() {
		devices.podMTU -= vxlanOverhead6 - vxlanOverhead4
	}
	overlay, err := d.net.EnsureVXLAN(OverlayDevice, OverlayPort, devices.podMTU)
	if err != nil {
		return nodeDevices{}, err
	}
	devices.overlay = overlay.Attrs().Index
	if err := d.net.EnsureSysctl("2", "net/ipv4/conf", OverlayDevice, "rp_filter"); err != nil {
		return nodeDevices{}, err
	}
	return devices, d.forward(OverlayDevice)
}

func (d *Dataplane) forward(device string) error {
	return errors.Join(
		d.net.EnsureSysctl("1", "net/ipv4/conf", device, "forwarding"),
		d.net.EnsureSysctl("1", "net/ipv6/conf", device, "force_forwarding"))
}

func (d *Dataplane) findUplink(addr netip.Addr) (netlink.Link, error) {
	if d.cfg.Uplink != "" {
		link, err := d.net.LinkByName(d.cfg.Uplink)
		if err != nil {
			return nil, fmt.Errorf("look up uplink %s: %w", d.cfg.Uplink, err)
		}
		return link, nil
	}
	list, err := d.net.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		if a.IP.Equal(addr.AsSlice()) {
			link, err := d.net.LinkByIndex(a.LinkIndex)
			if err != nil {
				return nil, fmt.Errorf("look up the device with address %s: %w", addr, err)
			}
			return link, nil
		}
	}
	return nil, fmt.Errorf("no device has the node's address %s", addr)
}

// attachNode attaches the programs of uplink and overlay.
func (d *Dataplane) attachNode(devices nodeDevices) error {
	errs := []error{
		d.loader.EnsureTCX("uplink_ingress", "uplink_ingress", devices.uplink, ebpf.AttachTCXIngress),
		d.loader.EnsureTCX("uplink_egress", "uplink_egress", devices.uplink, ebpf.AttachTCXEgress),
	}
	if devices.overlay == 0 {
		errs = append(errs, d.loader.Detach("overlay_egress"), d.loader.Detach("overlay_ingress"))
	} else {
		errs = append(errs,
			d.loader.EnsureTCX("overlay_egress", "overlay_egress", devices.overlay, ebpf.AttachTCXEgress),
			d.loader.EnsureTCX("overlay_ingress", "overlay_ingress", devices.overlay, ebpf.AttachTCXIngress))
	}
	return errors.Join(errs...)
}

// attachSockets attaches the programs of socket-level load balancing.
func (d *Dataplane) attachSockets() error {
	var errs []error
	for program, hook := range map[string]ebpf.AttachType{
		"socket_connect4":     ebpf.AttachCGroupInet4Connect,
		"socket_connect6":     ebpf.AttachCGroupInet6Connect,
		"socket_sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
		"socket_sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
		"socket_recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
		"socket_recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
		"socket_getpeername4": ebpf.AttachCgroupInet4GetPeername,
		"socket_getpeername6": ebpf.AttachCgroupInet6GetPeername,
	} {
		errs = append(errs, d.loader.EnsureCgroup(program, program, d.cfg.CgroupPath, hook))
	}
	return errors.Join(errs...)
}

// ensurePods makes the devices of all pods and adds their entries. A pod that
// fails is reported as a PodError and has no entry: its packets are dropped.
func (d *Dataplane) ensurePods(ctx context.Context, s State, mtu int) (map[bpfobj.MapsAddr]bpfobj.MapsEndpoint, []rtnl.Route, error) {
	endpoints := map[bpfobj.MapsAddr]bpfobj.MapsEndpoint{}
	var routes []rtnl.Route
	var errs []error
	for _, p := range s.Pods {
		if err := ctx.Err(); err != nil {
			return endpoints, routes, errors.Join(append(errs, err)...)
		}
		ifindex, err := d.ensurePod(p, mtu)
		if err == nil {
			entries := pod.Entries(p, ifindex)
			err = d.count(d.endpoints.Add(entries))
			for k, v := range entries {
				endpoints[k] = v
			}
			routes = append(routes, pod.Routes(p, ifindex, s.Node.Addresses)...)
		}
		if err != nil {
			errs = append(errs, &PodError{SandboxID: p.SandboxID, Err: fmt.Errorf("%s: %w", p.Name, err)})
		}
	}
	return endpoints, routes, errors.Join(errs...)
}

// ensurePod looks at the kernel only when the pod is new to this process,
// has changed, or failed before.
func (d *Dataplane) ensurePod(p pod.Pod, mtu int) (ifindex int, err error) {
	known, ok := d.pods[p.HostIfName]
	if ok && known.mtu == mtu && known.pod.Equal(p) {
		return known.ifindex, nil
	}
	delete(d.pods, p.HostIfName)
	ifindex, err = pod.Ensure(d.net, d.loader, p, mtu)
	if err != nil {
		return 0, err
	}
	d.pods[p.HostIfName] = device{pod: p, mtu: mtu, ifindex: ifindex}
	return ifindex, nil
}

// removePods takes away the devices of pods that are no longer wanted,
// whichever process made them.
func (d *Dataplane) removePods(wanted []pod.Pod) error {
	keep := map[string]bool{}
	for _, p := range wanted {
		keep[p.HostIfName] = true
	}
	names, err := d.loader.Links()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		_, hostIfName, ok := strings.Cut(name, "@")
		if !ok || keep[hostIfName] {
			continue
		}
		delete(d.pods, hostIfName)
		if err := pod.Remove(d.net, hostIfName); err != nil {
			errs = append(errs, err)
			continue // the pin is how the next pass finds the device
		}
		errs = append(errs, d.loader.Detach(name))
	}
	return errors.Join(errs...)
}

// setRoutes writes the routes when they differ from those last set. Routes
// to a device vanish with it, so a removed pod needs no pass of its own.
func (d *Dataplane) setRoutes(routes []rtnl.Route) error {
	if d.routes != nil && slices.Equal(routes, d.routes) {
		return nil
	}
	if err := d.net.EnsureRoutes(routes); err != nil {
		d.routes = nil
		return err
	}
	d.routes = routes
	return nil
}
