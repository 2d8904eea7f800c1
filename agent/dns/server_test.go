package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// upstream is a resolver on loopback, by UDP and TCP. It returns a resolv.conf
// that names it.
func upstream(t *testing.T, answer dns.HandlerFunc) (resolvConf string) {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(packets.LocalAddr().String())
	listener, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: answer}, {Listener: listener, Handler: answer}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go server.ActivateAndServe()
		<-started
		t.Cleanup(func() { server.Shutdown() })
	}
	return writeResolvConf(t, filepath.Join(t.TempDir(), "resolv.conf"), addr)
}

// writeResolvConf names one resolver. The port of a resolv.conf is always 53,
// so tests give theirs by a forwarder made with withPort.
func writeResolvConf(t *testing.T, path string, addr netip.AddrPort) string {
	t.Helper()
	if err := os.WriteFile(path, fmt.Appendf(nil, "nameserver %s\n# port %d\n", addr.Addr(), addr.Port()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func rr(t *testing.T, s string) dns.RR {
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// forwardTo makes s forward to the resolver in resolvConf's comment.
func forwardTo(t *testing.T, s *Server, resolvConf string) {
	t.Helper()
	data, err := os.ReadFile(resolvConf)
	if err != nil {
		t.Fatal(err)
	}
	var addr string
	var port int
	if _, err := fmt.Sscanf(string(data), "nameserver %s\n# port %d", &addr, &port); err != nil {
		t.Fatal(err)
	}
	s.forward.upstreams = []string{fmt.Sprintf("%s:%d", addr, port)}
	s.forward.lookedAt = time.Now().Add(time.Hour)
}

func TestOtherNamesAreForwardedAndCached(t *testing.T) {
	var asked atomic.Int32
	conf := upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 20 IN A 192.0.2.1")}
		w.WriteMsg(m)
	})
	s := testServer(t, clusterRecords(t, objects), conf)
	forwardTo(t, s, conf)
	for _, name := range []string{"www.example.com.", "www.example.com.", "WWW.example.COM."} {
		resp := ask(s, name, dns.TypeA)
		if resp.Rcode != 0 || len(resp.Answer) != 1 || resp.Question[0].Name != name {
			t.Fatalf("%s: %v", name, resp)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want once", n)
	}
}

func TestExternalNameIsFollowedUpstream(t *testing.T) {
	conf := upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{rr(t, "www.example.com. 20 IN A 192.0.2.1")}
		w.WriteMsg(m)
	})
	s := testServer(t, clusterRecords(t, objects), conf)
	forwardTo(t, s, conf)
	got := lines(ask(s, "outside.default.svc.cluster.local.", dns.TypeA).Answer)
	want := []string{"outside.default.svc.cluster.local. CNAME www.example.com.", "www.example.com. A 192.0.2.1"}
	if !slices.Equal(got, want) {
		t.Errorf("answer %q, want %q", got, want)
	}
}

func TestAnswerCutOffByUDPIsFetchedByTCP(t *testing.T) {
	conf := upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if _, isUDP := w.RemoteAddr().(*net.UDPAddr); isUDP {
			m.Truncated = true
		} else {
			m.Answer = []dns.RR{rr(t, "big.example.com. 20 IN A 192.0.2.1")}
		}
		w.WriteMsg(m)
	})
	s := testServer(t, clusterRecords(t, objects), conf)
	forwardTo(t, s, conf)
	if resp := ask(s, "big.example.com.", dns.TypeA); resp.Truncated || len(resp.Answer) != 1 {
		t.Errorf("got %v", resp)
	}
}

func TestWithoutResolverForwardingFails(t *testing.T) {
	s := testServer(t, clusterRecords(t, objects), filepath.Join(t.TempDir(), "none"))
	if resp := ask(s, "www.example.com.", dns.TypeA); resp.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %s, want SERVFAIL", dns.RcodeToString[resp.Rcode])
	}
}

func TestResolversAreReadAgainAndNeverOurselves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(s string, modified time.Time) {
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Unix(1_000_000, 0)
	write("nameserver 10.96.0.10\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n", now)
	f := newForwarder(path, map[netip.AddrPort]bool{netip.MustParseAddrPort("10.96.0.10:53"): true})
	if got, want := f.servers(now), []string{"192.0.2.53:53", "[2001:db8::53]:53"}; !slices.Equal(got, want) {
		t.Errorf("resolvers %q, want %q", got, want)
	}
	write("nameserver 192.0.2.54\n", now.Add(time.Second))
	if got, want := f.servers(now.Add(reloadInterval)), []string{"192.0.2.54:53"}; !slices.Equal(got, want) {
		t.Errorf("after a change %q, want %q", got, want)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := f.servers(now.Add(2 * reloadInterval)); !slices.Equal(got, []string{"192.0.2.54:53"}) {
		t.Errorf("without the file %q, want the last ones", got)
	}
}

func TestCacheKeepsAnswersForTheirTTL(t *testing.T) {
	req := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	soa := "example.com. 600 IN SOA ns. host. 1 1 1 1 7"
	for _, tt := range []struct {
		name   string
		change func(*dns.Msg)
		want   time.Duration
	}{
		{"the smallest TTL counts", func(m *dns.Msg) {
			m.Answer = []dns.RR{rr(t, "a. 20 IN A 192.0.2.1"), rr(t, "a. 10 IN A 192.0.2.2")}
		}, 10 * time.Second},
		{"long TTLs are cut", func(m *dns.Msg) { m.Answer = []dns.RR{rr(t, "a. 3600 IN A 192.0.2.1")} }, maxCacheTime},
		{"no such name is kept as the SOA says", func(m *dns.Msg) { m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{rr(t, soa)} }, 7 * time.Second},
		{"a negative answer without SOA is not kept", func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, 0},
		{"a failure is not kept", func(m *dns.Msg) { m.Rcode, m.Ns = dns.RcodeServerFailure, []dns.RR{rr(t, soa)} }, 0},
		{"what is cut off is not kept", func(m *dns.Msg) {
			m.Truncated, m.Answer = true, []dns.RR{rr(t, "a. 20 IN A 192.0.2.1")}
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, now := newAnswerCache(), time.Unix(1000, 0)
			resp := new(dns.Msg).SetReply(req)
			tt.change(resp)
			c.put(req, resp, now)
			if tt.want > 0 && c.get(req, now.Add(tt.want-time.Millisecond)) == nil {
				t.Errorf("forgotten before %s", tt.want)
			}
			if c.get(req, now.Add(tt.want)) != nil {
				t.Errorf("kept for %s", tt.want)
			}
		})
	}
}

func TestCachedTTLsCountDown(t *testing.T) {
	c, now := newAnswerCache(), time.Unix(1000, 0)
	req := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	resp := new(dns.Msg).SetReply(req)
	resp.Answer = []dns.RR{rr(t, "www.example.com. 20 IN A 192.0.2.1")}
	c.put(req, resp, now)
	if got := c.get(req, now.Add(5*time.Second)).Answer[0].Header().Ttl; got != 15 {
		t.Errorf("TTL %d after 5 s of 20", got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c, now := newAnswerCache(), time.Unix(1000, 0)
	for i := range maxCached + 50 {
		req := new(dns.Msg).SetQuestion(fmt.Sprintf("h%d.example.com.", i), dns.TypeA)
		resp := new(dns.Msg).SetReply(req)
		resp.Answer = []dns.RR{&dns.A{Hdr: header(req.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, 1)}}
		c.put(req, resp, now)
	}
	if n := len(c.entries); n > maxCached {
		t.Errorf("%d entries, want at most %d", n, maxCached)
	}
}

func TestAnswersFitTransportAndClient(t *testing.T) {
	for _, tt := range []struct {
		name        string
		isUDP       bool
		edns        uint16 // 0: none
		maxLen      int
		isTruncated bool
	}{
		{"plain UDP has 512 bytes", true, 0, 512, true},
		{"EDNS0 allows more, up to what fits every link", true, 4096, maxUDP, true},
		{"TCP has it all", false, 0, dns.MaxMsgSize, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := new(dns.Msg).SetQuestion("many.default.svc.cluster.local.", dns.TypeA)
			if tt.edns > 0 {
				req.SetEdns0(tt.edns, false)
			}
			resp := new(dns.Msg).SetReply(req)
			for i := range 200 {
				resp.Answer = append(resp.Answer, &dns.A{Hdr: header(req.Question[0].Name, dns.TypeA), A: net.IPv4(10, 0, 0, byte(i))})
			}
			fit(resp, req, tt.isUDP)
			if resp.Truncated != tt.isTruncated || resp.Len() > tt.maxLen {
				t.Errorf("%d bytes, truncated %v; want at most %d, truncated %v", resp.Len(), resp.Truncated, tt.maxLen, tt.isTruncated)
			}
			if (resp.IsEdns0() != nil) != (tt.edns > 0) {
				t.Errorf("EDNS0 in the answer: %v", resp.IsEdns0())
			}
		})
	}
}

// TestServerAnswersOverUDPAndTCP runs the whole server with informers.
func TestServerAnswersOverUDPAndTCP(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.Addr().String()
	probe.Close()
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}},
		})
	factory := informers.NewSharedInformerFactory(client, 0)
	s, err := New(Config{Cluster: factory, Listen: []netip.AddrPort{netip.MustParseAddrPort(addr)}, Domain: "cluster.local", ResolvConf: "/none"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	for _, network := range []string{"tcp", "udp"} {
		c := &dns.Client{Net: network}
		var resp *dns.Msg
		for resp == nil { // until the socket is open
			resp, _, err = c.Exchange(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), addr)
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
		}
		if got := lines(resp.Answer); !slices.Equal(got, []string{"web.default.svc.cluster.local. A 10.96.0.20"}) {
			t.Errorf("%s: %q", network, got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	factory.Shutdown()
}

func BenchmarkClusterQuestion(b *testing.B) {
	s := testServer(b, clusterRecords(b, objects), "/none")
	b.ReportAllocs()
	for b.Loop() {
		ask(s, "web.default.svc.cluster.local.", dns.TypeA)
	}
}
