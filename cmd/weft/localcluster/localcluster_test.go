package localcluster

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestClusterNamesFitDeviceNames(t *testing.T) {
	tests := map[string]struct {
		name  string
		valid bool
	}{
		"one letter":             {"a", true},
		"letters and digits":     {"test42", true},
		"a dash inside":          {"my-test", true},
		"ten characters":         {"abcdefghij", true},
		"eleven characters":      {"abcdefghijk", false},
		"empty":                  {"", false},
		"upper case":             {"Test", false},
		"a dash first":           {"-test", false},
		"a dash last":            {"test-", false},
		"a path":                 {"../etc", false},
		"a line break in a name": {"a\nb", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := CheckName(test.name); (err == nil) != test.valid {
				t.Errorf("CheckName(%q) = %v, want valid %v", test.name, err, test.valid)
			}
		})
	}
}

func TestNamesOfTheLastNodeFitTheirLimits(t *testing.T) {
	c := &Cluster{Name: "abcdefghij", Nodes: MaxNodes, Subnet: netip.MustParsePrefix("172.30.255.0/24")}
	last := c.node(MaxNodes)
	if len(last.hostDevice()) > 15 || len(c.bridge()) > 15 {
		t.Errorf("device names %q and %q exceed 15 bytes (IFNAMSIZ)", last.hostDevice(), c.bridge())
	}
	if err := last.containerd("/usr/local/bin").Validate(); err != nil {
		t.Error(err)
	}
	if !c.Subnet.Contains(last.Addr) {
		t.Errorf("address %s is outside %s", last.Addr, c.Subnet)
	}
}

func TestLoadBalancersAndNodesShareNoAddress(t *testing.T) {
	c := &Cluster{Name: "x", Nodes: MaxNodes, Subnet: netip.MustParsePrefix("172.30.7.0/24")}
	prefix := c.loadBalancerPrefix()
	for _, addr := range []netip.Addr{c.hostAddr(), c.node(1).Addr, c.node(MaxNodes).Addr} {
		if prefix.Contains(addr) {
			t.Errorf("%s contains %s", prefix, addr)
		}
	}
	if got, want := c.loadBalancerAddresses(), "172.30.7.128-172.30.7.254"; got != want {
		t.Errorf("the pool is %s, want %s", got, want)
	}
}

func TestFindNodeListsTheNodesItKnows(t *testing.T) {
	c := &Cluster{Name: "x", Nodes: 2, Subnet: netip.MustParsePrefix("172.30.0.0/24")}
	node, err := c.FindNode("node-2")
	if err != nil || node.Addr != netip.MustParseAddr("172.30.0.12") {
		t.Errorf("node-2 is %v, %v", node, err)
	}
	if _, err := c.FindNode("node-3"); err == nil || !strings.Contains(err.Error(), "node-1 to node-2") {
		t.Errorf("error %v does not list the nodes", err)
	}
}

func TestLoadOfNoClusterSaysHowToMakeIt(t *testing.T) {
	_, err := Load("nosuch")
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "weft up --name nosuch") {
		t.Errorf("error is %v", err)
	}
}

func TestMountsBelowFindsOnlyOurs(t *testing.T) {
	const mountinfo = `23 28 0:21 / /proc rw - proc proc rw
60 28 254:0 /a /var/lib/weft/x/kubelet rw shared:1 - ext4 /dev/vda rw
61 60 0:50 / /var/lib/weft/x/kubelet/with\040space rw - tmpfs tmpfs rw
62 28 0:51 / /var/lib/weft/xyz/kubelet rw - tmpfs tmpfs rw
63 28 0:52 / /run/weft/x rw - tmpfs tmpfs rw
`
	got := mountsBelow(mountinfo, "/var/lib/weft/x", "/run/weft/x")
	want := []string{"/var/lib/weft/x/kubelet", "/var/lib/weft/x/kubelet/with space", "/run/weft/x"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestASubnetInUseIsNotTaken(t *testing.T) {
	taken := []netip.Prefix{netip.MustParsePrefix("172.30.0.0/23")}
	for subnet := range subnets {
		if !overlapsAny(subnet, taken) {
			if want := netip.MustParsePrefix("172.30.2.0/24"); subnet != want {
				t.Errorf("first free subnet is %s, want %s", subnet, want)
			}
			return
		}
	}
	t.Error("no subnet is free")
}

func TestNamespacesOfAClusterGoWithItAloneAndTwice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	c := &Cluster{Name: "nettest", Nodes: 2, Subnet: netip.MustParsePrefix("172.30.254.0/24")}
	t.Cleanup(func() { c.removeNetwork() })
	for range 2 {
		if err := c.ensureBridge(); err != nil {
			t.Fatal(err)
		}
		for _, node := range c.AllNodes() {
			if err := c.ensureNode(node); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		if err := c.removeNetwork(); err != nil {
			t.Fatal(err)
		}
	}
	left, _ := filepath.Glob(netnsRoot + "/weft-nettest-*")
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
