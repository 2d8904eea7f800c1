package dns

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
)

// objects is the cluster of the tests.
const objects = `
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, "fd00:96::20"]
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.20]}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: sql, port: 5432}, {name: admin, port: 9000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}, {name: admin, port: 9001}]
endpoints:
- {addresses: [10.244.1.5], hostname: db-0, conditions: {ready: true}}
- {addresses: [10.244.2.5], hostname: db-1}
- {addresses: [10.244.2.6], hostname: db-2, conditions: {ready: false}}
- {addresses: [10.244.2.7]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-6, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: ["fd00:10::5"], hostname: db-0}]
---
apiVersion: v1
kind: Service
metadata: {name: early, namespace: default}
spec: {clusterIP: None, publishNotReadyAddresses: true}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: early-1, namespace: default, labels: {kubernetes.io/service-name: early}}
addressType: IPv4
ports: []
endpoints: [{addresses: [10.244.1.30], hostname: early-0, conditions: {ready: false}}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: default}
spec: {clusterIP: None}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: default}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: default}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: loop, namespace: default}
spec: {type: ExternalName, externalName: loop.default.svc.cluster.local}
`

// clusterRecords holds the objects as informers would.
func clusterRecords(t testing.TB, stream string) records {
	t.Helper()
	r := records{
		services:   cache.NewIndexer(cache.MetaNamespaceKeyFunc, serviceIndexers),
		slices:     cache.NewIndexer(cache.MetaNamespaceKeyFunc, sliceIndexers),
		namespaces: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		hasSynced:  func() bool { return true },
	}
	for doc := range strings.SplitSeq(strings.TrimSpace(stream), "\n---\n") {
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		store := map[string]cache.Indexer{
			"*v1.Service": r.services, "*v1.EndpointSlice": r.slices, "*v1.Namespace": r.namespaces,
		}[typeName(obj)]
		if err := store.Add(obj); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func typeName(obj runtime.Object) string {
	switch obj.(type) {
	case *corev1.Service:
		return "*v1.Service"
	case *discoveryv1.EndpointSlice:
		return "*v1.EndpointSlice"
	default:
		return "*v1.Namespace"
	}
}

// testServer answers from the objects and forwards to upstreams, written as
// resolv.conf.
func testServer(t testing.TB, r records, resolvConf string) *Server {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}
	return &Server{
		cfg: cfg,
		zone: &zone{
			domain: "cluster.local.", dnsAddrs: cfg.ClusterDNS, records: r,
			prefixes: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")},
		},
		forward: newForwarder(resolvConf, own(cfg)),
		metrics: m,
	}
}

func ask(s *Server, name string, qtype uint16) *dns.Msg {
	resp, _ := s.resolve(context.Background(), new(dns.Msg).SetQuestion(name, qtype))
	return resp
}

// lines are records as text, sorted, without class and TTL.
func lines(rrs []dns.RR) []string {
	var list []string
	for _, rr := range rrs {
		fields := strings.Fields(rr.String())
		list = append(list, strings.Join(append(fields[:1], fields[3:]...), " "))
	}
	slices.Sort(list)
	return list
}

func TestClusterNames(t *testing.T) {
	s := testServer(t, clusterRecords(t, objects), filepath.Join(t.TempDir(), "none"))
	const soa = "cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
	noData, noName := dns.RcodeSuccess, dns.RcodeNameError
	for _, tt := range []struct {
		name, question string
		qtype          uint16
		rcode          int
		answer, extra  []string
	}{
		{"the API server's Service", "kubernetes.default.svc.cluster.local.", dns.TypeA, 0, []string{"kubernetes.default.svc.cluster.local. A 10.96.0.1"}, nil},
		{"a ClusterIP", "web.default.svc.cluster.local.", dns.TypeA, 0, []string{"web.default.svc.cluster.local. A 10.96.0.20"}, nil},
		{"a ClusterIP of the other family", "web.default.svc.cluster.local.", dns.TypeAAAA, 0, []string{"web.default.svc.cluster.local. AAAA fd00:96::20"}, nil},
		{"case does not matter and is kept", "WEB.Default.svc.Cluster.Local.", dns.TypeA, 0, []string{"WEB.Default.svc.Cluster.Local. A 10.96.0.20"}, nil},
		{"a family that the Service lacks is no data", "kubernetes.default.svc.cluster.local.", dns.TypeAAAA, noData, nil, nil},
		{"another type is no data", "web.default.svc.cluster.local.", dns.TypeMX, noData, nil, nil},
		{"an unknown Service does not exist", "nope.default.svc.cluster.local.", dns.TypeA, noName, nil, nil},
		{"a Service of an unknown namespace does not exist", "web.nope.svc.cluster.local.", dns.TypeA, noName, nil, nil},
		{"a name that repeats the search path does not exist", "web.default.svc.cluster.local.default.svc.cluster.local.", dns.TypeA, noName, nil, nil},
		{"a Service port", "_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV, 0,
			[]string{"_http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local."},
			[]string{"web.default.svc.cluster.local. A 10.96.0.20", "web.default.svc.cluster.local. AAAA fd00:96::20"}},
		{"a UDP port", "_dns._udp.web.default.svc.cluster.local.", dns.TypeSRV, 0,
			[]string{"_dns._udp.web.default.svc.cluster.local. SRV 0 100 53 web.default.svc.cluster.local."},
			[]string{"web.default.svc.cluster.local. A 10.96.0.20", "web.default.svc.cluster.local. AAAA fd00:96::20"}},
		{"a port by the wrong protocol does not exist", "_http._udp.web.default.svc.cluster.local.", dns.TypeSRV, noName, nil, nil},
		{"a protocol alone is no data", "_tcp.web.default.svc.cluster.local.", dns.TypeSRV, noData, nil, nil},
		{"a protocol without port does not exist", "_sctp.web.default.svc.cluster.local.", dns.TypeSRV, noName, nil, nil},
		{"an endpoint of a ClusterIP Service has a name", "10-244-1-20.web.default.svc.cluster.local.", dns.TypeA, 0, []string{"10-244-1-20.web.default.svc.cluster.local. A 10.244.1.20"}, nil},
		{"a headless Service is its ready endpoints", "db.default.svc.cluster.local.", dns.TypeA, 0, []string{
			"db.default.svc.cluster.local. A 10.244.1.5", "db.default.svc.cluster.local. A 10.244.2.5", "db.default.svc.cluster.local. A 10.244.2.7"}, nil},
		{"a pod of a StatefulSet", "db-0.db.default.svc.cluster.local.", dns.TypeA, 0, []string{"db-0.db.default.svc.cluster.local. A 10.244.1.5"}, nil},
		{"a pod of a StatefulSet by IPv6", "db-0.db.default.svc.cluster.local.", dns.TypeAAAA, 0, []string{"db-0.db.default.svc.cluster.local. AAAA fd00:10::5"}, nil},
		{"a pod without IPv6 is no data", "db-1.db.default.svc.cluster.local.", dns.TypeAAAA, noData, nil, nil},
		{"a pod that is not ready does not exist", "db-2.db.default.svc.cluster.local.", dns.TypeA, noName, nil, nil},
		{"an endpoint without host name goes by its address", "10-244-2-7.db.default.svc.cluster.local.", dns.TypeA, 0, []string{"10-244-2-7.db.default.svc.cluster.local. A 10.244.2.7"}, nil},
		{"a port of a headless Service", "_admin._tcp.db.default.svc.cluster.local.", dns.TypeSRV, 0, []string{
			"_admin._tcp.db.default.svc.cluster.local. SRV 0 33 9001 10-244-2-7.db.default.svc.cluster.local.",
			"_admin._tcp.db.default.svc.cluster.local. SRV 0 33 9001 db-0.db.default.svc.cluster.local.",
			"_admin._tcp.db.default.svc.cluster.local. SRV 0 33 9001 db-1.db.default.svc.cluster.local."},
			[]string{"10-244-2-7.db.default.svc.cluster.local. A 10.244.2.7", "db-0.db.default.svc.cluster.local. A 10.244.1.5", "db-1.db.default.svc.cluster.local. A 10.244.2.5"}},
		{"not-ready endpoints where the Service publishes them", "early-0.early.default.svc.cluster.local.", dns.TypeA, 0, []string{"early-0.early.default.svc.cluster.local. A 10.244.1.30"}, nil},
		{"a headless Service without ports", "early.default.svc.cluster.local.", dns.TypeA, 0, []string{"early.default.svc.cluster.local. A 10.244.1.30"}, nil},
		{"a headless Service without endpoints does not exist", "nobody.default.svc.cluster.local.", dns.TypeA, noName, nil, nil},
		{"an ExternalName by CNAME", "outside.default.svc.cluster.local.", dns.TypeCNAME, 0, []string{"outside.default.svc.cluster.local. CNAME www.example.com."}, nil},
		{"an ExternalName has no SRV", "outside.default.svc.cluster.local.", dns.TypeSRV, noData, nil, nil},
		{"an ExternalName within the cluster is followed", "alias.default.svc.cluster.local.", dns.TypeA, 0, []string{
			"alias.default.svc.cluster.local. CNAME web.default.svc.cluster.local.", "web.default.svc.cluster.local. A 10.96.0.20"}, nil},
		{"a pod's address spelled out", "10-244-1-9.default.pod.cluster.local.", dns.TypeA, 0, []string{"10-244-1-9.default.pod.cluster.local. A 10.244.1.9"}, nil},
		{"a pod's IPv6 address spelled out", "fd00-10--9.default.pod.cluster.local.", dns.TypeAAAA, 0, []string{"fd00-10--9.default.pod.cluster.local. AAAA fd00:10::9"}, nil},
		{"a pod of an unknown namespace does not exist", "10-244-1-9.nope.pod.cluster.local.", dns.TypeA, noName, nil, nil},
		{"a pod name that is no address does not exist", "web-1.default.pod.cluster.local.", dns.TypeA, noName, nil, nil},
		{"a namespace is no data", "default.svc.cluster.local.", dns.TypeA, noData, nil, nil},
		{"an unknown namespace does not exist", "nope.svc.cluster.local.", dns.TypeA, noName, nil, nil},
		{"svc itself is no data", "svc.cluster.local.", dns.TypeA, noData, nil, nil},
		{"a stray name does not exist", "stray.cluster.local.", dns.TypeA, noName, nil, nil},
		{"the specification's version", "dns-version.cluster.local.", dns.TypeTXT, 0, []string{`dns-version.cluster.local. TXT "1.1.0"`}, nil},
		{"the domain's SOA", "cluster.local.", dns.TypeSOA, 0, []string{soa}, nil},
		{"the domain's NS", "cluster.local.", dns.TypeNS, 0, []string{"cluster.local. NS ns.dns.cluster.local."}, []string{"ns.dns.cluster.local. A 10.96.0.10"}},
		{"the name server", "ns.dns.cluster.local.", dns.TypeA, 0, []string{"ns.dns.cluster.local. A 10.96.0.10"}, nil},
		{"the name of a ClusterIP", "20.0.96.10.in-addr.arpa.", dns.TypePTR, 0, []string{"20.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."}, nil},
		{"the name of an IPv6 ClusterIP", reverse(t, "fd00:96::20"), dns.TypePTR, 0, []string{reverse(t, "fd00:96::20") + " PTR web.default.svc.cluster.local."}, nil},
		{"the name of a headless endpoint", "5.1.244.10.in-addr.arpa.", dns.TypePTR, 0, []string{"5.1.244.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."}, nil},
		{"an endpoint of a ClusterIP Service has no reverse name", "20.1.244.10.in-addr.arpa.", dns.TypePTR, noName, nil, nil},
		{"an unused ClusterIP has no name", "99.0.96.10.in-addr.arpa.", dns.TypePTR, noName, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp := ask(s, tt.question, tt.qtype)
			if resp.Rcode != tt.rcode || !resp.Authoritative {
				t.Errorf("rcode %s, authoritative %v, want %s", dns.RcodeToString[resp.Rcode], resp.Authoritative, dns.RcodeToString[tt.rcode])
			}
			if got := lines(resp.Answer); !slices.Equal(got, tt.answer) {
				t.Errorf("answer %q\nwant   %q", got, tt.answer)
			}
			if got := lines(resp.Extra); !slices.Equal(got, tt.extra) {
				t.Errorf("extra %q\nwant  %q", got, tt.extra)
			}
			if len(tt.answer) == 0 && !slices.Equal(lines(resp.Ns), []string{soa}) {
				t.Errorf("authority %q, want the SOA (RFC 2308)", lines(resp.Ns))
			}
			for _, rr := range resp.Answer {
				if rr.Header().Ttl != ttlSeconds {
					t.Errorf("TTL %d in %s", rr.Header().Ttl, rr)
				}
			}
		})
	}
}

func reverse(t *testing.T, addr string) string {
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestExternalNameLoopEnds(t *testing.T) {
	s := testServer(t, clusterRecords(t, objects), filepath.Join(t.TempDir(), "none"))
	if resp := ask(s, "loop.default.svc.cluster.local.", dns.TypeA); resp.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %s, want SERVFAIL", dns.RcodeToString[resp.Rcode])
	}
}

func TestNothingIsDeniedBeforeTheInformersHaveSynced(t *testing.T) {
	r := clusterRecords(t, objects)
	r.hasSynced = func() bool { return false }
	s := testServer(t, r, filepath.Join(t.TempDir(), "none"))
	for _, name := range []string{"web.default.svc.cluster.local.", "20.0.96.10.in-addr.arpa."} {
		if resp := ask(s, name, dns.TypeA); resp.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: rcode %s, want SERVFAIL", name, dns.RcodeToString[resp.Rcode])
		}
	}
}

func TestRefusedQuestions(t *testing.T) {
	s := testServer(t, clusterRecords(t, objects), filepath.Join(t.TempDir(), "none"))
	question := func(change func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		change(m)
		return m
	}
	for _, tt := range []struct {
		name  string
		req   *dns.Msg
		rcode int
	}{
		{"zone transfers", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"another class", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"any type", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }), dns.RcodeNotImplemented},
		{"updates", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"two questions", question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"a later EDNS", question(func(m *dns.Msg) { m.SetEdns0(1232, false).IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if resp, _ := s.resolve(t.Context(), tt.req); resp.Rcode != tt.rcode {
				t.Errorf("rcode %s, want %s", dns.RcodeToString[resp.Rcode], dns.RcodeToString[tt.rcode])
			}
		})
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"web.default.svc.cluster.local.", "_http._tcp.a.b.svc.cluster.local.", `a\.b.c.svc.cluster.local.`, "cluster.local.", ".", "5.1.244.10.in-addr.arpa.", "1.0.f.ip6.arpa."} {
		f.Add(s)
	}
	s := testServer(f, clusterRecords(f, objects), "/none")
	f.Fuzz(func(t *testing.T, qname string) {
		if _, ok := dns.IsDomainName(qname); !ok {
			return
		}
		qname = dns.CanonicalName(qname)
		n, isIn := parseName(qname, "cluster.local.")
		if isIn && !strings.HasSuffix(qname, "cluster.local.") {
			t.Errorf("%q is not in the domain: %+v", qname, n)
		}
		if addr, ok := parseReverse(qname); ok {
			if again, err := dns.ReverseAddr(addr.String()); err != nil || again != qname {
				t.Errorf("%q read as %s, which is %q", qname, addr, again)
			}
		}
		s.zone.answer(dns.Question{Name: qname, Qtype: dns.TypeSRV, Qclass: dns.ClassINET}) // must not panic
	})
}
