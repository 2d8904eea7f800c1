package dataplane

import (
	"net/netip"
	"testing"

	"weft.dev/weft/dataplane/peer"
	"weft.dev/weft/dataplane/service"
)

// TestIPv6PodsBesideIPv4 gives every pod a second address, of IPv6, while
// the nodes have IPv4 only, so that the tunnel is IPv4.
func TestIPv6PodsBesideIPv4(t *testing.T) {
	c := newCluster(t, VXLAN)
	for number, n := range []*node{c.a, c.b} {
		base := netip.MustParseAddr([]string{"2001:db8:2:1::", "2001:db8:2:2::"}[number])
		n.state.Node.PodCIDRs = append(n.state.Node.PodCIDRs, netip.PrefixFrom(base, 64))
		n.state.Node.ClusterCIDRs = append(n.state.Node.ClusterCIDRs, netip.MustParsePrefix("2001:db8:2::/48"))
		for i := range n.state.Pods {
			a := base.As16()
			a[15] = byte(11 + i)
			n.state.Pods[i].Addrs = append(n.state.Pods[i].Addrs, netip.AddrFrom16(a))
		}
	}
	vip := netip.MustParseAddrPort("[2001:db8:3::99]:80")
	six := func(n *node, i int) netip.AddrPort { return netip.AddrPortFrom(n.state.Pods[i].Addrs[1], 8080) }
	c.a.state.Peers = []peer.Peer{c.b.asPeer("b")}
	c.b.state.Peers = []peer.Peer{c.a.asPeer("a")}
	c.a.state.Services = frontends(service.ClusterIP, vip.Addr(), vip.Port(), six(c.b, 0))
	c.a.apply()
	c.b.apply()
	for _, n := range []*node{c.a, c.b} {
		for i, ns := range n.pods {
			ns.Serve(n.state.Pods[i].Name, six(n, i))
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		mustAsk(t, c.a.pods[0], network, six(c.a, 1), "test/node1-pod2")
		mustAsk(t, c.a.pods[0], network, six(c.b, 0), "test/node2-pod1")
		mustAsk(t, c.a.pods[0], network, vip, "test/node2-pod1")
	}
	c.a.enterCgroup()
	mustAsk(t, c.a.pods[0], "tcp", vip, "test/node2-pod1")
	before := c.a.plane.Writes()
	c.a.apply()
	if got := c.a.plane.Writes() - before; got != 0 {
		t.Errorf("second Apply made %d writes", got)
	}
	if err := c.a.plane.Close(); err != nil {
		t.Fatal(err)
	}
	c.a.open()
	c.a.apply()
	if got := c.a.plane.Writes(); got != 0 {
		t.Errorf("Apply after a restart made %d writes", got)
	}
}
