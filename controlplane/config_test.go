package controlplane

import (
	"net/netip"
	"strings"
	"testing"
)

func valid() Config {
	c := DefaultConfig()
	c.StateDir = "/state"
	c.AdvertiseAddress = netip.MustParseAddr("192.0.2.1")
	return c
}

func parse(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestTheDefaultsAreValid(t *testing.T) {
	if err := valid().validate(); err != nil {
		t.Error(err)
	}
	dual := valid()
	dual.ServiceCIDRs = parse("10.96.0.0/16", "fd00:96::/112")
	dual.PodCIDRs = parse("10.244.0.0/16", "fd00:244::/48")
	if err := dual.validate(); err != nil {
		t.Errorf("both families: %v", err)
	}
}

func TestEachMistakeIsReportedByTheNameOfItsFlag(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no state directory", func(c *Config) { c.StateDir = "" }, "--state-dir"},
		{"a relative state directory", func(c *Config) { c.StateDir = "state" }, "--state-dir"},
		{"no name", func(c *Config) { c.ClusterName = "" }, "--cluster-name"},
		{"no domain", func(c *Config) { c.ClusterDomain = "" }, "--cluster-domain"},
		{"no address", func(c *Config) { c.AdvertiseAddress = netip.Addr{} }, "--advertise-address"},
		{"a loopback address", func(c *Config) { c.AdvertiseAddress = netip.MustParseAddr("::1") }, "--advertise-address"},
		{"the unspecified address", func(c *Config) { c.AdvertiseAddress = netip.IPv4Unspecified() }, "--advertise-address"},
		{"a port out of range", func(c *Config) { c.BindPort = 65536 }, "--bind-port"},
		{"no etcd port", func(c *Config) { c.EtcdClientPort = 0 }, "--etcd-client-port"},
		{"no Service prefix", func(c *Config) { c.ServiceCIDRs = nil }, "--service-cidr"},
		{"two of one family", func(c *Config) { c.ServiceCIDRs = parse("10.96.0.0/16", "10.97.0.0/16") }, "same family"},
		{"host bits in a prefix", func(c *Config) { c.PodCIDRs = parse("10.244.1.0/16") }, "10.244.0.0/16 is meant"},
		{"a Service prefix without room for cluster DNS", func(c *Config) { c.ServiceCIDRs = parse("10.96.0.0/29") }, "--service-cidr"},
		{"an IPv6 Service prefix that upstream refuses", func(c *Config) { c.ServiceCIDRs = parse("fd00:96::/64") }, "--service-cidr"},
		{"pods and Services overlap", func(c *Config) { c.PodCIDRs = parse("10.0.0.0/8") }, "overlaps --pod-cidr"},
		{"a node's share larger than the whole", func(c *Config) { c.NodeMaskIPv4 = 15 }, "--node-cidr-mask-size-ipv4"},
		{"an IPv6 share larger than the whole", func(c *Config) {
			c.PodCIDRs, c.NodeMaskIPv6 = parse("fd00:244::/48"), 32
		}, "--node-cidr-mask-size-ipv6"},
		{"no grace for nodes", func(c *Config) { c.NodeMonitorGracePeriod = 0 }, "--node-monitor-grace-period"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := valid()
			tt.change(&c)
			if err := c.validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

func TestAnOutsideEtcdNeedsNoPorts(t *testing.T) {
	c := valid()
	c.EtcdClientPort, c.EtcdPeerPort = 0, 0
	c.ExternalEtcd.Endpoints = []string{"https://192.0.2.20:2379"}
	if err := c.validate(); err != nil {
		t.Error(err)
	}
}

func TestAddressesOfServicesComeFromThePrefix(t *testing.T) {
	tests := []struct {
		prefix string
		n      int
		want   string
	}{
		{"10.96.0.0/16", 1, "10.96.0.1"},
		{"10.96.0.0/16", 10, "10.96.0.10"},
		{"fd00:96::/112", 10, "fd00:96::a"},
	}
	for _, tt := range tests {
		if got := nthAddress(netip.MustParsePrefix(tt.prefix), tt.n).String(); got != tt.want {
			t.Errorf("address %d of %s is %s, want %s", tt.n, tt.prefix, got, tt.want)
		}
	}
}

func TestAServerURLBracketsIPv6(t *testing.T) {
	c := valid()
	c.AdvertiseAddress = netip.MustParseAddr("2001:db8::1")
	if got := c.Server(); got != "https://[2001:db8::1]:6443" {
		t.Error(got)
	}
}
