package desired

import (
	"net/netip"
	"strconv"

	"weft.dev/weft/dataplane/service"
)

// addHostPorts sends host ports to the pods that have them: on every node
// address of the pod's families and on loopback, or on the one address the
// pod asked for. The client's address stays, the backend is on this node.
func (f frontends) addHostPorts(node localNode, sandboxes []Sandbox) {
	for _, s := range sandboxes {
		for _, hp := range s.HostPorts {
			for _, addr := range s.Addrs {
				f.addHostPort(node, s, hp, addr)
			}
		}
	}
}

func (f frontends) addHostPort(node localNode, s Sandbox, hp HostPort, podAddr netip.Addr) {
	backend := []service.Backend{{Addr: podAddr, Port: hp.ContainerPort}}
	for _, addr := range hostPortAddrs(node, hp, podAddr.Is4()) {
		front := service.Frontend{
			Service: s.Name + ":" + strconv.Itoa(int(hp.HostPort)), Kind: service.HostPort,
			Addr: addr, Port: hp.HostPort, Protocol: hp.Protocol,
			Internal: backend, External: backend, KeepSource: true,
		}
		if addr.IsLoopback() {
			front.External, front.KeepSource = nil, false
		}
		f.add(front)
	}
}

func hostPortAddrs(node localNode, hp HostPort, is4 bool) []netip.Addr {
	if hp.HostIP.IsValid() && !hp.HostIP.IsUnspecified() {
		if hp.HostIP.Is4() != is4 {
			return nil
		}
		return []netip.Addr{hp.HostIP}
	}
	// 0.0.0.0 and :: mean every address of their own family.
	if hp.HostIP.IsValid() && hp.HostIP.Is4() != is4 {
		return nil
	}
	var addrs []netip.Addr
	for _, a := range append([]netip.Addr{loopback4, netip.IPv6Loopback()}, node.addresses...) {
		if a.Is4() == is4 {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
