package desired

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"weft.dev/weft/dataplane"
	"weft.dev/weft/dataplane/service"
)

var update = flag.Bool("update", false, "rewrite state.txt of every scenario")

// TestScenarios computes the objects.yaml of every testdata/*.txtar on node
// "a" and compares with its state.txt.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { scenario(t, file) })
	}
}

func scenario(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	in := readInputs(t, content(archive, "objects.yaml"))
	state := Compute(in)
	got := text(state) + healthText(HealthChecks(in))
	if *update {
		setContent(archive, "state.txt", got)
		writeArchive(t, path, archive)
	}
	if want := content(archive, "state.txt"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	for range 5 { // order and repetition do not matter
		shuffled := shuffleAndDouble(in)
		if again := Compute(shuffled); !reflect.DeepEqual(again, state) {
			t.Fatalf("objects in another order give:\n%s\nbefore:\n%s", text(again), text(state))
		}
	}
}

// readInputs decodes a YAML stream of API objects and sandboxes (kind:
// Sandbox, the fields of type Sandbox).
func readInputs(t *testing.T, stream string) Inputs {
	t.Helper()
	in := Inputs{Settings: Settings{
		NodeName:     "a",
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		ClusterDNS:   []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		DNSPort:      10053,
	}}
	for doc := range strings.SplitSeq(stream, "\n---\n") {
		if strings.Contains(doc, "kind: Sandbox") {
			var s Sandbox
			doc = strings.Replace(doc, "kind: Sandbox", "", 1)
			if err := yaml.UnmarshalStrict([]byte(doc), &s); err != nil {
				t.Fatal(err)
			}
			in.Sandboxes = append(in.Sandboxes, s)
			continue
		}
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		switch o := obj.(type) {
		case *corev1.Service:
			in.Services = append(in.Services, o)
		case *discoveryv1.EndpointSlice:
			in.EndpointSlices = append(in.EndpointSlices, o)
		case *corev1.Node:
			in.Nodes = append(in.Nodes, o)
		default:
			t.Fatalf("unexpected %T", o)
		}
	}
	return in
}

func shuffleAndDouble(in Inputs) Inputs {
	in.Services = shuffled(in.Services)
	in.EndpointSlices = shuffled(in.EndpointSlices)
	in.Nodes = shuffled(in.Nodes)
	in.Sandboxes = shuffled(in.Sandboxes)
	return in
}

func shuffled[T any](list []T) []T {
	double := append(append([]T{}, list...), list...)
	rand.Shuffle(len(double), func(i, j int) { double[i], double[j] = double[j], double[i] })
	return double
}

// text is a State for people to read and git to compare.
func text(s dataplane.State) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "node %v pods %v cluster %v services %v\n", s.Node.Addresses, s.Node.PodCIDRs, s.Node.ClusterCIDRs, s.Node.ServiceCIDRs)
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "peer %s %s pods %v\n", p.Node, p.Addr, p.PodCIDRs)
	}
	for _, p := range s.Pods {
		fmt.Fprintf(&b, "pod %s %s %v %s:%s host %s\n", p.Name, p.SandboxID, p.Addrs, p.Netns, p.IfName, p.HostIfName)
	}
	for _, f := range s.Services {
		b.WriteString(frontendText(f) + "\n")
	}
	return b.String()
}

var kinds = map[service.Kind]string{
	service.ClusterIP: "ClusterIP", service.NodePort: "NodePort", service.ExternalIP: "ExternalIP",
	service.LoadBalancer: "LoadBalancer", service.HostPort: "HostPort",
}

var protocols = map[service.Protocol]string{service.TCP: "tcp", service.UDP: "udp", service.SCTP: "sctp"}

func frontendText(f service.Frontend) string {
	parts := []string{
		kinds[f.Kind], netip.AddrPortFrom(f.Addr, f.Port).String() + "/" + protocols[f.Protocol], f.Service,
		"internal", backendsText(f.Internal),
	}
	if !reflect.DeepEqual(f.Internal, f.External) {
		parts = append(parts, "external", backendsText(f.External))
	}
	if f.DropInternal {
		parts = append(parts, "drop-internal")
	}
	if f.DropExternal {
		parts = append(parts, "drop-external")
	}
	if f.KeepSource {
		parts = append(parts, "keep-source")
	}
	if f.Affinity > 0 {
		parts = append(parts, "affinity", f.Affinity.String())
	}
	if len(f.SourceRanges) > 0 {
		parts = append(parts, "from", fmt.Sprint(f.SourceRanges))
	}
	return strings.Join(parts, " ")
}

func backendsText(bs []service.Backend) string {
	var parts []string
	for _, b := range bs {
		parts = append(parts, netip.AddrPortFrom(b.Addr, b.Port).String())
	}
	return "[" + strings.Join(parts, " ") + "]"
}

func healthText(checks []HealthCheck) string {
	var b bytes.Buffer
	for _, c := range checks {
		fmt.Fprintf(&b, "health :%d %s local endpoints %d\n", c.Port, c.Service, c.LocalEndpoints)
	}
	return b.String()
}
