package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/dataplane/service"
	"weft.dev/weft/dataplane/testnet"
)

// enterCgroup moves this process, and with it the sockets it makes, to where
// the node's socket-level load balancing applies.
func (n *node) enterCgroup() {
	n.t.Helper()
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		n.t.Fatal(err)
	}
	_, own, _ := strings.Cut(string(before), "0::")
	own, _, _ = strings.Cut(own, "\n")
	move := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
	}
	if err := move(n.cfg.CgroupPath); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := move(filepath.Join(filepath.Dir(n.cfg.CgroupPath), own)); err != nil {
			n.t.Errorf("leave the node's cgroup: %v", err)
		}
	})
}

const servicePort = 80

var clusterIP = netip.MustParseAddr("10.96.0.99")

// frontends are one service for TCP and UDP at addr:port.
func frontends(kind service.Kind, addr netip.Addr, port uint16, backends ...netip.AddrPort) []service.Frontend {
	var list []service.Backend
	for _, b := range backends {
		list = append(list, service.Backend{Addr: b.Addr(), Port: b.Port()})
	}
	var out []service.Frontend
	for _, protocol := range []service.Protocol{service.TCP, service.UDP} {
		out = append(out, service.Frontend{
			Service: "test/web:http", Kind: kind, Addr: addr, Port: port, Protocol: protocol,
			Internal: list, External: list,
		})
	}
	return out
}

func (n *node) backend(i int) netip.AddrPort { return netip.AddrPortFrom(n.podAddr(i), 8080) }

func bothRoutings(t *testing.T, f func(*testing.T, *cluster)) {
	for _, routing := range []Routing{VXLAN, Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := newCluster(t, routing)
			c.servePods()
			f(t, c)
		})
	}
}

func TestClusterIPReachesItsBackends(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		vip := netip.AddrPortFrom(clusterIP, servicePort)
		for _, target := range []struct {
			name    string
			backend netip.AddrPort
			server  string
		}{
			{"a pod on the same node", c.a.backend(1), "test/node1-pod2"},
			{"a pod on another node", c.b.backend(0), "test/node2-pod1"},
			{"the client itself", c.a.backend(0), "test/node1-pod1"},
			{"a socket of the node", netip.AddrPortFrom(c.a.addr(), 9001), "host-a"},
			{"a socket of another node", netip.AddrPortFrom(c.b.addr(), 9001), "host-b"},
		} {
			t.Run("backend is "+target.name, func(t *testing.T) {
				if strings.HasPrefix(target.server, "host") {
					map[string]*node{"host-a": c.a, "host-b": c.b}[target.server].Serve(target.server, target.backend)
				}
				c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, target.backend)
				c.a.apply()
				t.Run("from a pod per packet", func(t *testing.T) {
					mustAsk(t, c.a.pods[0], "tcp", vip, target.server)
					mustAsk(t, c.a.pods[0], "udp", vip, target.server)
				})
				c.a.enterCgroup()
				t.Run("from a pod's socket", func(t *testing.T) {
					mustAsk(t, c.a.pods[0], "tcp", vip, target.server)
					mustAsk(t, c.a.pods[0], "udp", vip, target.server)
				})
				t.Run("from a socket of the node", func(t *testing.T) {
					mustAsk(t, c.a.Namespace, "tcp", vip, target.server)
					mustAsk(t, c.a.Namespace, "udp", vip, target.server)
				})
			})
		}
	})
}

func TestUnconnectedDatagramsOfTheNodeAreAnsweredByTheFrontend(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0))
	c.a.apply()
	c.a.enterCgroup()
	answer, from, err := c.a.AskUnconnected(netip.AddrPortFrom(clusterIP, servicePort).String(), "hello")
	if err != nil || !strings.HasPrefix(answer, "test/node2-pod1 ") {
		t.Fatalf("answer %q, %v", answer, err)
	}
	if want := netip.AddrPortFrom(clusterIP, servicePort).String(); from != want {
		t.Errorf("answer came from %s, want %s", from, want)
	}
}

func TestPeerNameIsTheFrontend(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0))
	c.a.apply()
	c.a.enterCgroup()
	want := netip.AddrPortFrom(clusterIP, servicePort).String()
	conn, err := c.a.pods[0].Dial("tcp", want)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != want {
		t.Errorf("getpeername says %s, want %s", got, want)
	}
}

func TestServiceWithoutBackendsIsRefusedAtOnce(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort)
	c.a.apply()
	check := func(t *testing.T, from *testnet.Namespace, network string, port uint16) {
		t.Helper()
		start := time.Now()
		_, err := from.Ask(network, netip.AddrPortFrom(clusterIP, port).String(), "hello")
		if !errors.Is(err, unix.ECONNREFUSED) || time.Since(start) > time.Second/2 {
			t.Errorf("%s to port %d: %v after %s, want connection refused at once", network, port, err, time.Since(start))
		}
	}
	for _, port := range []uint16{servicePort, servicePort + 1} { // no backend, no frontend
		t.Run(fmt.Sprintf("port %d per packet", port), func(t *testing.T) {
			check(t, c.a.pods[0], "tcp", port)
			check(t, c.a.pods[0], "udp", port)
		})
	}
	c.a.enterCgroup()
	for _, port := range []uint16{servicePort, servicePort + 1} {
		t.Run(fmt.Sprintf("port %d at the socket", port), func(t *testing.T) {
			check(t, c.a.pods[0], "tcp", port)
			check(t, c.a.Namespace, "tcp", port)
			check(t, c.a.Namespace, "udp", port)
		})
	}
}

func TestRemovedBackendGetsNoMoreDatagrams(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0))
	c.a.apply()
	conn, err := c.a.pods[0].Dial("udp", netip.AddrPortFrom(clusterIP, servicePort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i, want := range []string{"test/node2-pod1", "test/node2-pod2"} {
		c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(i))
		c.a.apply()
		answer, err := testnet.Say(conn, "hello")
		if err != nil || !strings.HasPrefix(answer, want+" ") {
			t.Errorf("answer %q, %v; want one of %s", answer, err, want)
		}
	}
}

func TestConnectedDatagramSocketOfTheNodeEndsWithItsBackend(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	vip := netip.AddrPortFrom(clusterIP, servicePort).String()
	use := func(backends ...netip.AddrPort) {
		c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, backends...)
		c.a.apply()
	}
	use(c.b.backend(0))
	c.a.enterCgroup()
	dial := func() net.Conn {
		conn, err := c.a.Dial("udp", vip)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	conn := dial()
	direct, err := c.a.Dial("udp", c.b.backend(0).String()) // asked for the pod itself
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()

	use(c.b.backend(0), c.b.backend(1))
	if answer, err := testnet.Say(conn, "hello"); err != nil || !strings.HasPrefix(answer, "test/node2-pod1 ") {
		t.Errorf("while its backend serves: answer %q, %v", answer, err)
	}
	ended := func(when string) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(testnet.Timeout))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: read: %v, want connection aborted", when, err)
		}
		if _, err := conn.Write([]byte("hello")); !errors.Is(err, unix.EDESTADDRREQ) {
			t.Errorf("%s: write: %v, want no destination", when, err)
		}
	}
	use(c.b.backend(1))
	ended("once its backend is removed")
	if answer, err := testnet.Say(direct, "hello"); err != nil {
		t.Errorf("a socket of the pod itself: answer %q, %v", answer, err)
	}
	conn = dial()
	if answer, err := testnet.Say(conn, "hello"); err != nil || !strings.HasPrefix(answer, "test/node2-pod2 ") {
		t.Errorf("connected anew: answer %q, %v", answer, err)
	}
	c.a.state.Services = nil
	c.a.apply()
	ended("once the service is removed")
}

func TestLocalPolicyDropsWithoutLocalBackend(t *testing.T) {
	c := newCluster(t, VXLAN)
	services := frontends(service.ClusterIP, clusterIP, servicePort)
	for i := range services {
		services[i].DropInternal, services[i].DropExternal = true, true
	}
	c.a.state.Services = services
	c.a.apply()
	vip := netip.AddrPortFrom(clusterIP, servicePort).String()
	before, err := c.a.plane.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.a.pods[0].Ask("udp", vip, "hello"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a datagram: %v, want no answer at all", err)
	}
	c.a.enterCgroup()
	for name, from := range map[string]*testnet.Namespace{"a pod's": c.a.pods[0], "the node's": c.a.Namespace} {
		start := time.Now()
		if _, err := from.Ask("tcp", vip, "hello"); !errors.Is(err, unix.ETIMEDOUT) || time.Since(start) > time.Second/2 {
			t.Errorf("%s socket: %v after %s, want a time-out at once", name, err, time.Since(start))
		}
	}
	after, err := c.a.plane.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if after["drop_no_backend"] < before["drop_no_backend"]+3 || after["rejected"] != before["rejected"] {
		t.Errorf("counters before %v, after %v", before, after)
	}
}

func TestSocketKeepsItsBackendWhileTheListGrows(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0))
	c.a.apply()
	conn, err := c.a.pods[0].Dial("udp", netip.AddrPortFrom(clusterIP, servicePort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 8 {
		if i == 1 {
			c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.a.backend(1), c.b.backend(0), c.b.backend(1))
			c.a.apply()
		}
		answer, err := testnet.Say(conn, "hello")
		if err != nil || !strings.HasPrefix(answer, "test/node2-pod1 ") {
			t.Errorf("answer %q, %v", answer, err)
		}
	}
}

func TestAffinityKeepsAClientAtItsBackend(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.a.backend(1), c.b.backend(0), c.b.backend(1))
	for i := range c.a.state.Services {
		c.a.state.Services[i].Affinity = time.Hour
	}
	c.a.apply()
	for _, network := range []string{"tcp", "udp"} {
		servers := map[string]bool{}
		for range 12 {
			answer, err := c.a.pods[0].Ask(network, netip.AddrPortFrom(clusterIP, servicePort).String(), "hello")
			if err != nil {
				t.Fatal(err)
			}
			server, _, _ := strings.Cut(answer, " ")
			servers[server] = true
		}
		if len(servers) != 1 {
			t.Errorf("%s: answered by %d servers, want 1", network, len(servers))
		}
	}
}

func TestConnectionsSpreadOverAllBackends(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.a.backend(1), c.b.backend(0), c.b.backend(1))
	c.a.apply()
	servers := map[string]int{}
	for range 60 {
		answer, err := c.a.pods[0].Ask("tcp", netip.AddrPortFrom(clusterIP, servicePort).String(), "hello")
		if err != nil {
			t.Fatal(err)
		}
		server, _, _ := strings.Cut(answer, " ")
		servers[server]++
	}
	if len(servers) != 3 {
		t.Errorf("answered by %v, want 3 servers", servers)
	}
}

func TestNodePortFromOutside(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		nodePort := netip.AddrPortFrom(c.a.addr(), 30080)
		for _, target := range []struct {
			name       string
			backend    netip.AddrPort
			server     string
			keepSource bool
			wantClient netip.Addr
		}{
			{"a pod on the node", c.a.backend(0), "test/node1-pod1", false, c.a.addr()},
			{"a pod on the node that sees the client's address", c.a.backend(0), "test/node1-pod1", true, netip.MustParseAddr("172.31.0.100")},
			{"a pod on another node", c.b.backend(0), "test/node2-pod1", false, c.a.addr()},
			{"a socket of the node", netip.AddrPortFrom(c.a.addr(), 9001), "host-a", false, netip.MustParseAddr("172.31.0.100")},
			{"a socket of another node", netip.AddrPortFrom(c.b.addr(), 9001), "host-b", false, c.a.addr()},
		} {
			t.Run("backend is "+target.name, func(t *testing.T) {
				if strings.HasPrefix(target.server, "host") {
					map[string]*node{"host-a": c.a, "host-b": c.b}[target.server].Serve(target.server, target.backend)
				}
				c.a.state.Services = frontends(service.NodePort, nodePort.Addr(), nodePort.Port(), target.backend)
				for i := range c.a.state.Services {
					c.a.state.Services[i].KeepSource = target.keepSource
				}
				c.a.apply()
				for _, network := range []string{"tcp", "udp"} {
					got, _ := netip.ParseAddrPort(mustAsk(t, c.client, network, nodePort, target.server))
					if got.Addr() != target.wantClient {
						t.Errorf("%s: the server saw client %s, want %s", network, got.Addr(), target.wantClient)
					}
				}
				t.Run("from a pod of another node", func(t *testing.T) {
					mustAsk(t, c.b.pods[1], "tcp", nodePort, target.server)
					mustAsk(t, c.b.pods[1], "udp", nodePort, target.server)
				})
			})
		}
	})
}

func TestNodePortOnLoopbackServesTheNodesProcesses(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	local := netip.MustParseAddrPort("127.0.0.1:30080")
	c.a.state.Services = frontends(service.NodePort, local.Addr(), local.Port(), c.b.backend(0))
	c.a.apply()
	c.a.enterCgroup()
	mustAsk(t, c.a.Namespace, "tcp", local, "test/node2-pod1")
	mustAsk(t, c.a.Namespace, "udp", local, "test/node2-pod1")
}

func TestSourceRangesKeepOthersOut(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	address := netip.AddrPortFrom(c.a.addr(), 8000)
	for _, tc := range []struct {
		ranges string
		served bool
	}{{"172.31.0.0/24", true}, {"172.31.1.0/24", false}} {
		c.a.state.Services = frontends(service.LoadBalancer, address.Addr(), address.Port(), c.a.backend(0))
		for i := range c.a.state.Services {
			c.a.state.Services[i].SourceRanges = []netip.Prefix{netip.MustParsePrefix(tc.ranges)}
		}
		c.a.apply()
		_, err := c.client.Ask("tcp", address.String(), "hello")
		if served := err == nil; served != tc.served {
			t.Errorf("ranges %s: %v, want served: %v", tc.ranges, err, tc.served)
		}
	}
}

func TestMasqueradeGivesPodsTheNodesAddressOutside(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		outside := netip.MustParseAddrPort("172.31.0.100:7000")
		c.client.Serve("outside", outside)
		for _, network := range []string{"tcp", "udp"} {
			conn, err := c.a.pods[0].Dial(network, outside.String())
			if err != nil {
				t.Fatalf("%s: %v", network, err)
			}
			defer conn.Close()
			for range 3 { // the first packet and the rest take different paths
				answer, err := testnet.Say(conn, "hello")
				if err != nil {
					t.Fatalf("%s: %v", network, err)
				}
				client, _ := netip.ParseAddrPort(strings.Fields(answer)[1])
				if client.Addr() != c.a.addr() {
					t.Errorf("%s: the server saw client %s, want %s", network, client, c.a.addr())
				}
			}
		}
		t.Run("a closed port outside is reported to the pod", func(t *testing.T) {
			for _, network := range []string{"tcp", "udp"} {
				_, err := c.a.pods[0].Ask(network, "172.31.0.100:7001", "hello")
				if !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s: %v, want connection refused", network, err)
				}
			}
		})
		t.Run("datagrams larger than the MTU", func(t *testing.T) {
			answer, err := c.a.pods[0].Ask("udp", outside.String(), strings.Repeat("x", 5000))
			if err != nil || len(answer) < 5000 {
				t.Errorf("%d bytes, %v", len(answer), err)
			}
		})
		t.Run("echo requests", func(t *testing.T) {
			if err := c.a.pods[0].Ping("172.31.0.100"); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestClosedPortOfABackendIsReportedByTheFrontend(t *testing.T) {
	c := newCluster(t, VXLAN)
	for _, backend := range []netip.AddrPort{c.a.backend(1), c.b.backend(0), c.a.backend(0)} {
		c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, backend)
		c.a.apply()
		for _, network := range []string{"tcp", "udp"} {
			_, err := c.a.pods[0].Ask(network, netip.AddrPortFrom(clusterIP, servicePort).String(), "hello")
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s to %s: %v, want connection refused", network, backend, err)
			}
		}
	}
}

func TestLargeDatagramsThroughServices(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		nodePort := netip.AddrPortFrom(c.a.addr(), 30080)
		c.a.state.Services = slices.Concat(
			frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0)),
			frontends(service.NodePort, nodePort.Addr(), nodePort.Port(), c.b.backend(0)))
		c.a.apply()
		payload := strings.Repeat("x", 9000)
		for from, ns := range map[string]*testnet.Namespace{"pod": c.a.pods[0], "outside": c.client} {
			to := netip.AddrPortFrom(clusterIP, servicePort)
			if from == "outside" {
				to = nodePort
			}
			answer, err := ns.Ask("udp", to.String(), payload)
			if err != nil || len(answer) < len(payload) {
				t.Errorf("from %s: %d bytes, %v", from, len(answer), err)
			}
		}
	})
}

func TestSpoofedSourceIsDropped(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.pods[0].Addr("eth0", netip.MustParsePrefix("10.244.1.77/32"))
	_, err := c.a.pods[0].AskFrom("10.244.1.77", "udp", c.a.backend(1).String(), "hello")
	if err == nil {
		t.Error("a packet with a foreign source arrived")
	}
}
