package dataplane

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/service"
	"weft.dev/weft/dataplane/testnet"
)

// nodePortBackends are a socket and a pod on each node.
func (c *cluster) nodePortBackends() map[string]netip.AddrPort {
	backends := map[string]netip.AddrPort{
		"host-a":          netip.AddrPortFrom(c.a.addr(), 9001),
		"host-b":          netip.AddrPortFrom(c.b.addr(), 9001),
		"test/node1-pod1": c.a.backend(0),
		"test/node2-pod1": c.b.backend(0),
	}
	c.a.Serve("host-a", backends["host-a"])
	c.b.Serve("host-b", backends["host-b"])
	return backends
}

func TestNodePortFromAProcessOfItsNode(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		nodePort := netip.AddrPortFrom(c.a.addr(), 30080)
		c.a.enterCgroup()
		for server, backend := range c.nodePortBackends() {
			c.a.state.Services = frontends(service.NodePort, nodePort.Addr(), nodePort.Port(), backend)
			c.a.apply()
			t.Run("backend is "+server, func(t *testing.T) {
				mustAsk(t, c.a.Namespace, "tcp", nodePort, server)
				mustAsk(t, c.a.Namespace, "udp", nodePort, server)
			})
		}
	})
}

// The node whose port it is sees clients that are the backend, too, when a
// process or a pod of the other node reaches itself by way of it.
func TestNodePortFromAnotherNode(t *testing.T) {
	bothRoutings(t, func(t *testing.T, c *cluster) {
		nodePort := netip.AddrPortFrom(c.a.addr(), 30080)
		for server, backend := range c.nodePortBackends() {
			c.a.state.Services = frontends(service.NodePort, nodePort.Addr(), nodePort.Port(), backend)
			c.a.apply()
			for name, client := range map[string]*testnet.Namespace{
				"a process": c.b.Namespace, "the pod that may be the backend": c.b.pods[0], "another pod": c.b.pods[1],
			} {
				for _, network := range []string{"tcp", "udp"} {
					t.Run("from "+name+" to "+server+" over "+network, func(t *testing.T) {
						mustAsk(t, client, network, nodePort, server)
					})
				}
			}
		}
	})
}

// TestClientThatIsTheBackendSeesTheNode follows a datagram of a client outside
// to a port of the node, whose backend is the client itself, and its answer.
func TestClientThatIsTheBackendSeesTheNode(t *testing.T) {
	p := loadPrograms(t)
	const nodePort, clientPort, serverPort = 30080, 4000, 9001
	bothFamilies(t, func(t *testing.T, family int) {
		port := func(n uint16) uint16 { return n<<8 | n>>8 } // network byte order
		list := uint32(family + 1)
		p.put("services",
			bpfobj.MapsServiceKey{Addr: bpfobj.MapsAddr{B: nodeAddrs[family].As16()}, Port: port(nodePort), Protocol: 17},
			bpfobj.MapsService{ExternalList: list, ExternalCount: 1})
		p.put("backends", bpfobj.MapsBackendKey{List: list},
			bpfobj.MapsBackend{Addr: bpfobj.MapsAddr{B: farAddrs[family].As16()}, Port: port(serverPort)})

		question := testnet.Packet{Src: farAddrs[family], Dst: nodeAddrs[family], Protocol: 17, L4: testnet.UDP(clientPort, nodePort, "question")}
		verdict, out := p.run("uplink_ingress", question.Bytes())
		sent, err := testnet.ParseFrame(out)
		if verdict != verdictRedirect || err != nil {
			t.Fatalf("verdict %d, %v", verdict, err)
		}
		if sent.Src != nodeAddrs[family] || sent.Dst != farAddrs[family] {
			t.Fatalf("goes from %s to %s, want from the node to the client", sent.Src, sent.Dst)
		}
		answer := testnet.Packet{Src: sent.Dst, Dst: sent.Src, Protocol: 17,
			L4: testnet.UDP(serverPort, binary.BigEndian.Uint16(sent.L4), "answer")}
		verdict, out = p.run("uplink_ingress", answer.Bytes())
		got, err := testnet.ParseFrame(out)
		if verdict != verdictRedirect || err != nil {
			t.Fatalf("answer: verdict %d, %v", verdict, err)
		}
		if got.Src != nodeAddrs[family] || got.Dst != farAddrs[family] ||
			binary.BigEndian.Uint16(got.L4) != nodePort || binary.BigEndian.Uint16(got.L4[2:]) != clientPort {
			t.Errorf("answer goes from %s to %s with ports % x, want from the node's port to the client's", got.Src, got.Dst, got.L4[:4])
		}
	})
}
