package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft.dev/weft/dataplane/peer"
	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/testnet"
)

// cluster is two nodes with two pods each, and a client outside, on a bridge:
//
//	pod a1, a2 ── node a (172.31.0.1) ──┐
//	pod b1, b2 ── node b (172.31.0.2) ──┼── bridge
//	client (172.31.0.100) ──────────────┘
type cluster struct {
	t      *testing.T
	a, b   *node
	client *testnet.Namespace
}

type node struct {
	*testnet.Namespace
	t     *testing.T
	cfg   Config
	state State
	plane *Dataplane
	pods  []*testnet.Namespace
}

func newCluster(t *testing.T, routing Routing) *cluster {
	t.Helper()
	wire := testnet.New(t)
	c := &cluster{t: t, client: testnet.New(t)}
	c.a = newNode(t, wire, 1, routing)
	c.b = newNode(t, wire, 2, routing)
	testnet.Wire(c.client, "eth0", wire, "client")
	c.client.Addr("eth0", netip.MustParsePrefix("172.31.0.100/24"))
	wire.Bridge("br0", "node1", "node2", "client")
	c.a.state.Peers = []peer.Peer{c.b.asPeer("b")}
	c.b.state.Peers = []peer.Peer{c.a.asPeer("a")}
	c.a.open()
	c.b.open()
	c.a.apply()
	c.b.apply()
	return c
}

func newNode(t *testing.T, wire *testnet.Namespace, number int, routing Routing) *node {
	t.Helper()
	n := &node{Namespace: testnet.New(t), t: t}
	testnet.Wire(n.Namespace, "eth0", wire, fmt.Sprintf("node%d", number))
	addr := netip.AddrFrom4([4]byte{172, 31, 0, byte(number)})
	n.Addr("eth0", netip.PrefixFrom(addr, 24))
	podCIDR := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24)
	n.cfg = Config{PinDir: testnet.BPFFS(t) + "/node", CgroupPath: testnet.Cgroup(t), Routing: routing}
	n.state.Node = Node{
		Addresses:    []netip.Addr{addr},
		PodCIDRs:     []netip.Prefix{podCIDR},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}
	for i := 1; i <= 2; i++ {
		ns := testnet.New(t)
		n.pods = append(n.pods, ns)
		n.state.Pods = append(n.state.Pods, pod.Pod{
			Name: fmt.Sprintf("test/node%d-pod%d", number, i), SandboxID: fmt.Sprintf("sandbox-%d-%d", number, i),
			Netns: ns.Path, IfName: "eth0", HostIfName: fmt.Sprintf("weft%d", i),
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(number), byte(10 + i)})},
		})
	}
	return n
}

func (n *node) asPeer(name string) peer.Peer {
	return peer.Peer{Node: name, Addr: n.addr(), PodCIDRs: n.state.Node.PodCIDRs}
}

func (n *node) addr() netip.Addr { return n.state.Node.Addresses[0] }

func (n *node) podAddr(i int) netip.Addr { return n.state.Pods[i].Addrs[0] }

func (n *node) open() {
	n.t.Helper()
	n.Do(func() (err error) {
		n.plane, err = Open(context.Background(), n.cfg)
		return err
	})
	plane := n.plane
	n.t.Cleanup(func() { plane.Close() })
}

func (n *node) apply() {
	n.t.Helper()
	n.Do(func() error { return n.plane.Apply(context.Background(), n.state) })
}

// mustAsk fails the test unless the server of that name answers.
func mustAsk(t *testing.T, from *testnet.Namespace, network string, to netip.AddrPort, wantServer string) string {
	t.Helper()
	answer, err := from.Ask(network, to.String(), "hello")
	if err != nil {
		t.Errorf("%s to %s: %v", network, to, err)
		return ""
	}
	server, rest, _ := strings.Cut(answer, " ")
	if server != wantServer {
		t.Errorf("%s to %s: answered by %q, want %q", network, to, server, wantServer)
	}
	client, _, _ := strings.Cut(rest, " ")
	return client
}

func (c *cluster) servePods() {
	for _, n := range []*node{c.a, c.b} {
		for i, ns := range n.pods {
			ns.Serve(n.state.Pods[i].Name, netip.AddrPortFrom(n.podAddr(i), 8080))
		}
	}
}

func TestPodsReachEachOtherWithoutTranslation(t *testing.T) {
	for _, routing := range []Routing{VXLAN, Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := newCluster(t, routing)
			c.servePods()
			for _, target := range []struct {
				name string
				on   *node
				pod  int
			}{
				{"pod on the same node", c.a, 1},
				{"pod on another node", c.b, 0},
			} {
				to := netip.AddrPortFrom(target.on.podAddr(target.pod), 8080)
				for _, network := range []string{"tcp", "udp"} {
					t.Run(target.name+" over "+network, func(t *testing.T) {
						client := mustAsk(t, c.a.pods[0], network, to, target.on.state.Pods[target.pod].Name)
						if got, _ := netip.ParseAddrPort(client); got.Addr() != c.a.podAddr(0) {
							t.Errorf("the server saw client %s, want %s", client, c.a.podAddr(0))
						}
					})
					t.Run("node to "+target.name+" over "+network, func(t *testing.T) {
						mustAsk(t, c.a.Namespace, network, to, target.on.state.Pods[target.pod].Name)
					})
				}
			}
			t.Run("pod to its node and to the other node", func(t *testing.T) {
				for _, n := range []*node{c.a, c.b} {
					n.Serve("node", netip.AddrPortFrom(n.addr(), 9000))
					mustAsk(t, c.a.pods[0], "tcp", netip.AddrPortFrom(n.addr(), 9000), "node")
					mustAsk(t, c.a.pods[0], "udp", netip.AddrPortFrom(n.addr(), 9000), "node")
				}
			})
			t.Run("large datagrams and streams", func(t *testing.T) {
				payload := strings.Repeat("x", 20000)
				for _, network := range []string{"tcp", "udp"} {
					answer, err := c.a.pods[0].Ask(network, netip.AddrPortFrom(c.b.podAddr(0), 8080).String(), payload)
					if err != nil || !strings.Contains(answer, "xxx") {
						t.Errorf("%s: %d bytes, %v", network, len(answer), err)
					}
				}
			})
		})
	}
}

func TestSecondApplyOfTheSameStateWritesNothing(t *testing.T) {
	c := newCluster(t, VXLAN)
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
		t.Errorf("Open and Apply after a restart made %d writes", got)
	}
}
