package dataplane

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/loader"
	"weft.dev/weft/dataplane/peer"
	"weft.dev/weft/dataplane/testnet"
)

// Verdicts of tcx programs (include/uapi/linux/pkt_cls.h).
const (
	verdictNext     = ^uint32(0)
	verdictDrop     = 2
	verdictRedirect = 7
)

// programs are loaded but attached to nothing: packets go in and come out by
// BPF_PROG_TEST_RUN, on device 1.
type programs struct {
	*loader.Loader
	t *testing.T
}

// A node 192.0.2.1, 2001:db8:1::1 with the pod 10.244.1.5, 2001:db8:2::5.
var (
	nodeAddrs = pair("192.0.2.1", "2001:db8:1::1")
	podAddrs  = pair("10.244.1.5", "2001:db8:2::5")
	farAddrs  = pair("198.51.100.7", "2001:db8:ffff::7")
	hopAddrs  = pair("203.0.113.9", "2001:db8:eeee::9")
	freeAddrs = pair("10.96.0.50", "2001:db8:3::50") // a ClusterIP nobody has
)

func pair(four, six string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(four), netip.MustParseAddr(six)}
}

func loadPrograms(t *testing.T) programs {
	t.Helper()
	l, err := loader.Open(testnet.BPFFS(t)+"/node", loader.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := programs{l, t}
	node := bpfobj.MapsNode{UplinkIfindex: 1}
	node.Addr4.B, node.Addr6.B = nodeAddrs[0].As16(), nodeAddrs[1].As16()
	p.put("nodes", uint32(0), node)
	own := peer.Own{
		Addresses:    nodeAddrs[:],
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("2001:db8:2::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("2001:db8:3::/112")},
	}
	for k, v := range peer.Entries(own, nil) {
		p.put("networks", k, v)
	}
	for _, a := range podAddrs {
		p.put("endpoints", bpfobj.MapsAddr{B: a.As16()}, bpfobj.MapsEndpoint{Ifindex: 1})
	}
	return p
}

func (p programs) put(name string, key, value any) {
	p.t.Helper()
	if err := p.Map(name).Put(key, value); err != nil {
		p.t.Fatalf("write to %s: %v", name, err)
	}
}

func (p programs) run(program string, frame []byte) (verdict uint32, out []byte) {
	p.t.Helper()
	out = make([]byte, len(frame)+256)
	opts := ebpf.RunOptions{Data: frame, DataOut: out}
	verdict, err := p.Program(program).Run(&opts)
	if err != nil {
		p.t.Fatalf("run %s: %v", program, err)
	}
	return verdict, opts.DataOut
}

func bothFamilies(t *testing.T, f func(t *testing.T, family int)) {
	t.Run("IPv4", func(t *testing.T) { f(t, 0) })
	t.Run("IPv6", func(t *testing.T) { f(t, 1) })
}

func TestUnknownServicePortIsAnswered(t *testing.T) {
	p := loadPrograms(t)
	bothFamilies(t, func(t *testing.T, family int) {
		question := testnet.Packet{Src: podAddrs[family], Dst: freeAddrs[family]}
		t.Run("a SYN by a reset that acknowledges it", func(t *testing.T) {
			question.Protocol, question.L4 = 6, testnet.TCP(4000, 80, 1000, 0, 0x02)
			verdict, out := p.run("pod_egress", question.Bytes())
			answer, err := testnet.ParseFrame(out)
			if verdict != verdictRedirect || err != nil {
				t.Fatalf("verdict %d, %v", verdict, err)
			}
			if answer.Src != question.Dst || answer.Dst != question.Src {
				t.Errorf("answer goes from %s to %s", answer.Src, answer.Dst)
			}
			want := testnet.TCP(80, 4000, 0, 1001, 0x14)
			if string(answer.L4[:14]) != string(want[:14]) {
				t.Errorf("answer is % x, want % x", answer.L4[:14], want[:14])
			}
		})
		t.Run("a datagram by port unreachable that quotes it", func(t *testing.T) {
			question.Protocol, question.L4 = 17, testnet.UDP(4000, 80, "a longer payload than is quoted, by far")
			verdict, out := p.run("pod_egress", question.Bytes())
			answer, err := testnet.ParseFrame(out)
			if verdict != verdictRedirect || err != nil {
				t.Fatalf("verdict %d, %v", verdict, err)
			}
			if kind := [2][2]byte{{3, 3}, {1, 4}}[family]; [2]byte(answer.L4[:2]) != kind {
				t.Errorf("ICMP type and code %v, want %v", answer.L4[:2], kind)
			}
			quoted := answer.L4[8:]
			if string(quoted) != string(question.IP()[:len(quoted)]) {
				t.Errorf("quotes % x", quoted)
			}
		})
		t.Run("a reset by nothing", func(t *testing.T) {
			question.Protocol, question.L4 = 6, testnet.TCP(4000, 80, 1000, 0, 0x04)
			if verdict, _ := p.run("pod_egress", question.Bytes()); verdict != verdictDrop {
				t.Errorf("verdict %d, want drop", verdict)
			}
		})
	})
}

func TestPodMustUseItsOwnAddress(t *testing.T) {
	p := loadPrograms(t)
	bothFamilies(t, func(t *testing.T, family int) {
		forged := testnet.Packet{Src: farAddrs[family], Dst: nodeAddrs[family], Protocol: 17, L4: testnet.UDP(1, 2, "x")}
		if verdict, _ := p.run("pod_egress", forged.Bytes()); verdict != verdictDrop {
			t.Errorf("verdict %d, want drop", verdict)
		}
		honest := testnet.Packet{Src: podAddrs[family], Dst: nodeAddrs[family], Protocol: 17, L4: testnet.UDP(1, 2, "x")}
		if verdict, _ := p.run("pod_egress", honest.Bytes()); verdict != verdictNext {
			t.Errorf("verdict %d, want on to the host", verdict)
		}
	})
}

func TestOverlayRefusesPacketsWithoutTunnel(t *testing.T) {
	p := loadPrograms(t)
	packet := testnet.Packet{Src: farAddrs[0], Dst: podAddrs[0], Protocol: 17, L4: testnet.UDP(1, 2, "x")}
	if verdict, _ := p.run("overlay_ingress", packet.Bytes()); verdict != verdictDrop {
		t.Errorf("verdict %d, want drop", verdict)
	}
}

func TestMasqueradeAndBackKeepChecksumsRight(t *testing.T) {
	p := loadPrograms(t)
	bothFamilies(t, func(t *testing.T, family int) {
		icmp, echoRequest, echoReply := uint8(1), byte(8), byte(0)
		if family == 1 {
			icmp, echoRequest, echoReply = 58, 128, 129
		}
		for name, tc := range map[string]struct {
			protocol uint8
			out      []byte
			answer   func(port uint16) []byte
		}{
			"tcp": {6, testnet.TCP(4000, 443, 1, 0, 0x02), func(port uint16) []byte { return testnet.TCP(443, port, 7, 2, 0x12) }},
			"udp": {17, testnet.UDP(4000, 53, "odd"), func(port uint16) []byte { return testnet.UDP(53, port, "answer") }},
			"echo": {icmp, testnet.ICMP(echoRequest, 0, []byte{0x0f, 0xa0, 0, 1}), func(port uint16) []byte {
				return testnet.ICMP(echoReply, 0, []byte{byte(port >> 8), byte(port), 0, 1})
			}},
		} {
			t.Run(name, func(t *testing.T) {
				packet := testnet.Packet{Src: podAddrs[family], Dst: farAddrs[family], Protocol: tc.protocol, L4: tc.out}
				verdict, frame := p.run("uplink_egress", packet.Bytes())
				sent, err := testnet.ParseFrame(frame)
				if verdict != verdictNext || err != nil {
					t.Fatalf("verdict %d, %v", verdict, err)
				}
				if sent.Src != nodeAddrs[family] {
					t.Errorf("left with source %s", sent.Src)
				}
				at := 0
				if name == "echo" {
					at = 4
				}
				port := binary.BigEndian.Uint16(sent.L4[at:])
				if port < 10000 || port >= 30000 {
					t.Errorf("left from port %d, which the node's sockets may use", port)
				}
				answer := testnet.Packet{Src: farAddrs[family], Dst: nodeAddrs[family], Protocol: tc.protocol, L4: tc.answer(port)}
				verdict, frame = p.run("uplink_ingress", answer.Bytes())
				got, err := testnet.ParseFrame(frame)
				if verdict != verdictRedirect || err != nil {
					t.Fatalf("verdict %d, %v", verdict, err)
				}
				if got.Dst != podAddrs[family] {
					t.Errorf("answer is for %s, want the pod", got.Dst)
				}
				at = 2 // destination port
				if name == "echo" {
					at = 4
				}
				if port := binary.BigEndian.Uint16(got.L4[at:]); port != 4000 {
					t.Errorf("answer is for port or identifier %d, want 4000", port)
				}
			})
		}
	})
}

func TestPacketThatIsDeliveredUntrackedIsNotCountedAsDropped(t *testing.T) {
	p := loadPrograms(t)
	bothFamilies(t, func(t *testing.T, family int) {
		// Another flow has the entry that the answers' direction would need.
		taken := bpfobj.MapsFlowKey{
			Src: bpfobj.MapsAddr{B: podAddrs[family].As16()}, Dst: bpfobj.MapsAddr{B: farAddrs[family].As16()},
			Sport: 443<<8&0xff00 | 443>>8, Dport: 4000<<8&0xff00 | 4000>>8, Protocol: 6,
		}
		p.put("flows", taken, bpfobj.MapsFlow{Src: taken.Src, Dst: bpfobj.MapsAddr{B: hopAddrs[family].As16()}, Sport: 1, Dport: 2})
		packet := testnet.Packet{Src: farAddrs[family], Dst: podAddrs[family], Protocol: 6, L4: testnet.TCP(4000, 443, 1, 0, 0x02)}
		if verdict, _ := p.run("uplink_ingress", packet.Bytes()); verdict != verdictRedirect {
			t.Fatalf("verdict %d, want it delivered", verdict)
		}
		for _, reason := range []bpfobj.MapsCounter{bpfobj.MapsCounterDROP_PORTS_EXHAUSTED, bpfobj.MapsCounterDROP_TABLE_FULL} {
			var perCPU []uint64
			if err := p.Map("counters").Lookup(uint32(reason), &perCPU); err != nil {
				t.Fatal(err)
			}
			if slices.Max(perCPU) != 0 {
				t.Errorf("%s: %v", counterNames[reason], perCPU)
			}
		}
	})
}

// TestErrorsAboutMasqueradedPacketsReachThePod sends what a router on the way
// says about a packet that left with the node's address.
func TestErrorsAboutMasqueradedPacketsReachThePod(t *testing.T) {
	p := loadPrograms(t)
	bothFamilies(t, func(t *testing.T, family int) {
		packet := testnet.Packet{Src: podAddrs[family], Dst: farAddrs[family], Protocol: 17, L4: testnet.UDP(4000, 53, "question")}
		_, frame := p.run("uplink_egress", packet.Bytes())
		quote := frame[14 : 14+28]
		message := testnet.Packet{Src: hopAddrs[family], Dst: nodeAddrs[family], Protocol: 1}
		message.L4 = testnet.ICMP(3, 4, append([]byte{0, 0, 1400 >> 8, 1400 & 0xff}, quote...)) // fragmentation needed
		if family == 1 {
			quote = frame[14 : 14+48]
			message.Protocol = 58
			message.L4 = testnet.ICMP(2, 0, append([]byte{0, 0, 1400 >> 8, 1400 & 0xff}, quote...)) // packet too big
		}
		verdict, out := p.run("uplink_ingress", message.Bytes())
		got, err := testnet.ParseFrame(out)
		if verdict != verdictRedirect || err != nil {
			t.Fatalf("verdict %d, %v", verdict, err)
		}
		if got.Src != hopAddrs[family] || got.Dst != podAddrs[family] {
			t.Errorf("goes from %s to %s, want the router's word for the pod", got.Src, got.Dst)
		}
		inner, err := testnet.ParseIP(got.L4[8:])
		if err != nil {
			t.Fatal(err)
		}
		if inner.Src != podAddrs[family] || inner.Dst != farAddrs[family] || binary.BigEndian.Uint16(inner.L4) != 4000 {
			t.Errorf("is about a packet from %s:%d to %s", inner.Src, binary.BigEndian.Uint16(inner.L4), inner.Dst)
		}
	})
}
