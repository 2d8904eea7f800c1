package nodecidr

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// node is described as "name" or "name=cidr,cidr".
func node(description string) *corev1.Node {
	name, cidrs, _ := strings.Cut(description, "=")
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if cidrs != "" {
		n.Spec.PodCIDRs = strings.Split(cidrs, ",")
	}
	return n
}

// ranges are described as "cidr nodeBits".
func ranges(descriptions ...string) []Range {
	var list []Range
	for _, d := range descriptions {
		cidr, bits, _ := strings.Cut(d, " ")
		r := Range{Cluster: netip.MustParsePrefix(cidr)}
		fmt.Sscan(bits, &r.NodeBits)
		list = append(list, r)
	}
	return list
}

func (p plan) String() string {
	var words []string
	for _, a := range p.Assign {
		words = append(words, a.Node.Name+"="+strings.Join(a.CIDRs, ","))
	}
	for _, n := range p.Exhausted {
		words = append(words, n.Name+" gets nothing")
	}
	return strings.Join(words, "; ")
}

func TestDecide(t *testing.T) {
	v4 := ranges("10.244.0.0/16 24")
	cases := []struct {
		name   string
		ranges []Range
		nodes  string
		want   string
	}{
		{"the first node gets the first part", v4, "a", "a=10.244.0.0/24"},
		{"each node gets its own", v4, "a b c", "a=10.244.0.0/24; b=10.244.1.0/24; c=10.244.2.0/24"},
		{"what a node has stays its own", v4, "a=10.244.0.0/24 b c=10.244.1.0/24", "b=10.244.2.0/24"},
		{"a gap is filled", v4, "a=10.244.0.0/24 b=10.244.2.0/24 c d", "c=10.244.1.0/24; d=10.244.3.0/24"},
		{"a node of a larger mask blocks all that it covers", v4, "a=10.244.0.0/23 b", "b=10.244.2.0/24"},
		{"a node of a smaller mask blocks what it is part of", v4, "a=10.244.0.128/25 b", "b=10.244.1.0/24"},
		{"a foreign CIDR blocks nothing", v4, "a=192.168.0.0/24 b", "b=10.244.0.0/24"},
		{"a dual-stack cluster gives one of each family", ranges("10.244.0.0/16 24", "fd00:1::/48 64"), "a b",
			"a=10.244.0.0/24,fd00:1::/64; b=10.244.1.0/24,fd00:1:0:1::/64"},
		{"the last part is used, then there is none", ranges("10.0.0.0/23 24"), "a b c", "a=10.0.0.0/24; b=10.0.1.0/24; c gets nothing"},
		{"no half of a dual stack", ranges("10.0.0.0/16 24", "fd00::/64 64"), "a b", "a=10.0.0.0/24,fd00::/64; b gets nothing"},
		{"the end of the address space is an end", ranges("255.255.255.0/24 25"), "a b c", "a=255.255.255.0/25; b=255.255.255.128/25; c gets nothing"},
		{"without ranges nothing is assigned", nil, "a", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var nodes []*corev1.Node
			for d := range strings.FieldsSeq(c.nodes) {
				nodes = append(nodes, node(d))
			}
			if got := decide(c.ranges, nodes).String(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestNoTwoNodesEverOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ranges("10.0.0.0/24 28", "fd00::/56 60")
		var nodes []*corev1.Node
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			if len(nodes) > 0 && rapid.IntRange(0, 2).Draw(t, "leaves") == 0 {
				nodes = slices.Delete(nodes, 0, 1)
			}
			nodes = append(nodes, node(fmt.Sprint("n", i)))
			for _, a := range decide(r, nodes).Assign {
				a.Node.Spec.PodCIDRs = a.CIDRs
			}
		}
		seen := map[string]string{}
		for _, n := range nodes {
			for _, cidr := range n.Spec.PodCIDRs {
				if other := seen[cidr]; other != "" {
					t.Fatalf("%s and %s both have %s", other, n.Name, cidr)
				}
				seen[cidr] = n.Name
			}
		}
	})
}

func TestConfigThatCannotWorkIsRefused(t *testing.T) {
	for _, r := range [][]Range{
		ranges("10.0.0.0/24 16"),
		ranges("10.0.0.0/24 33"),
		ranges("10.0.0.1/24 26"),
		ranges("10.0.0.0/16 24", "10.1.0.0/16 24"),
	} {
		if _, err := New(testcluster.New(t).Env("node-controller"), r); err == nil {
			t.Errorf("%v was accepted", r)
		}
	}
}

func TestNodesThatJoinGetAddressesAndKeepThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := testcluster.New(t)
		c, err := New(cluster.Env("node-controller"), ranges("10.0.0.0/23 24"))
		if err != nil {
			t.Fatal(err)
		}
		cluster.Run(c)
		nodes := cluster.Client.CoreV1().Nodes()
		for _, name := range []string{"a", "b", "c"} {
			if _, err := nodes.Create(t.Context(), node(name), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		cluster.Pass(time.Second)
		have := func() string {
			var words []string
			list := testcluster.Must[*corev1.NodeList](t)(nodes.List(t.Context(), metav1.ListOptions{}))
			for _, n := range list.Items {
				words = append(words, n.Name+"="+n.Spec.PodCIDR)
			}
			slices.Sort(words)
			return strings.Join(words, " ")
		}
		if got, want := have(), "a=10.0.0.0/24 b=10.0.1.0/24 c="; got != want {
			t.Errorf("after joining: %s, want %s", got, want)
		}
		if err := nodes.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		cluster.Pass(time.Second)
		if got, want := have(), "b=10.0.1.0/24 c=10.0.0.0/24"; got != want {
			t.Errorf("after one left: %s, want %s", got, want)
		}
	})
}
