package dataplane

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"weft.dev/weft/dataplane/service"
	"weft.dev/weft/dataplane/testnet"
)

// routeVia sends what ns has for addr to a gateway.
func routeVia(ns *testnet.Namespace, addr, gateway netip.Addr) {
	ns.Do(func() error {
		return netlink.RouteReplace(&netlink.Route{
			Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
			Gw:  gateway.AsSlice(),
		})
	})
}

// No device has a load balancer's address; the client's packets are routed to
// a node, and answers must come back from that address.
func TestLoadBalancerAddressFromOutside(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		c.a.Serve("host-a", netip.AddrPortFrom(c.a.addr(), 9001))
		c.b.Serve("host-b", netip.AddrPortFrom(c.b.addr(), 9001))
		for _, address := range []string{"203.0.113.9", "172.31.0.200"} { // the latter is of the nodes' own network
			vip := netip.AddrPortFrom(netip.MustParseAddr(address), servicePort)
			routeVia(c.client, vip.Addr(), c.a.addr())
			for _, target := range []struct {
				name    string
				backend netip.AddrPort
				server  string
			}{
				{"a pod on the node", c.a.backend(0), "test/node1-pod1"},
				{"a pod on another node", c.b.backend(0), "test/node2-pod1"},
				{"a socket of the node", netip.AddrPortFrom(c.a.addr(), 9001), "host-a"},
				{"a socket of another node", netip.AddrPortFrom(c.b.addr(), 9001), "host-b"},
			} {
				t.Run(address+" to "+target.name, func(t *testing.T) {
					c.a.state.Services = frontends(service.LoadBalancer, vip.Addr(), vip.Port(), target.backend)
					c.a.apply()
					mustAsk(t, c.client, "tcp", vip, target.server)
					mustAsk(t, c.client, "udp", vip, target.server)
					mustAsk(t, c.a.pods[1], "tcp", vip, target.server)
					mustAsk(t, c.a.pods[1], "udp", vip, target.server)
				})
			}
		}
	})
}
