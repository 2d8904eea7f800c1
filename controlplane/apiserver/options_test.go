package apiserver

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func valid() Config {
	return Config{
		PKIDir:           "/state/pki",
		Dir:              "/state/apiserver",
		AdvertiseAddress: netip.MustParseAddr("192.0.2.1"),
		BindPort:         6443,
		ServiceCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		ClusterDomain:    "cluster.example",
		Etcd:             Etcd{Endpoints: []string{"https://a:2379", "https://b:2379"}},
	}
}

func TestConfigurationBecomesFlags(t *testing.T) {
	args := valid().args()
	for _, want := range []string{
		"--advertise-address=192.0.2.1",
		"--secure-port=6443",
		"--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.example",
		"--etcd-servers=https://a:2379,https://b:2379",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=/state/pki/ca.crt",
		"--encryption-provider-config=/state/pki/encryption.yaml",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no advertise address", func(c *Config) { c.AdvertiseAddress = netip.Addr{} }, "advertise address"},
		{"an address that only this machine reaches", func(c *Config) { c.AdvertiseAddress = netip.MustParseAddr("127.0.0.1") }, "advertise address 127.0.0.1"},
		{"no Service prefix", func(c *Config) { c.ServiceCIDRs = nil }, "service CIDR"},
		{"no store", func(c *Config) { c.Etcd.Endpoints = nil }, "etcd endpoints"},
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
