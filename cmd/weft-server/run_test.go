package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"weft.dev/weft/controlplane"
)

func parse(args ...string) (controlplane.Config, error) {
	f := &runFlags{config: controlplane.DefaultConfig()}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.addTo(fs)
	if err := fs.Parse(args); err != nil {
		return controlplane.Config{}, err
	}
	return f.complete()
}

func TestFlagsBecomeConfiguration(t *testing.T) {
	c, err := parse("--state-dir=/state", "--advertise-address=192.0.2.1", "--bind-port=7443",
		"--pod-cidr=10.1.0.0/16,fd00:1::/48", "--service-cidr=10.2.0.0/16", "--service-cidr=fd00:2::/112",
		"--etcd-endpoints=https://a:2379,https://b:2379", "--tls-san=example.org")
	if err != nil {
		t.Fatal(err)
	}
	if c.StateDir != "/state" || c.BindPort != 7443 || c.AdvertiseAddress != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%+v", c)
	}
	wantPods := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}
	wantServices := []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:2::/112")}
	if !slices.Equal(c.PodCIDRs, wantPods) || !slices.Equal(c.ServiceCIDRs, wantServices) {
		t.Errorf("pods %v, Services %v", c.PodCIDRs, c.ServiceCIDRs)
	}
	if len(c.ExternalEtcd.Endpoints) != 2 || !slices.Equal(c.TLSSANs, []string{"example.org"}) {
		t.Errorf("%+v", c)
	}
}

func TestDefaultsAreThoseOfTheConfiguration(t *testing.T) {
	c, err := parse("--advertise-address=192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	want := controlplane.DefaultConfig()
	if !slices.Equal(c.PodCIDRs, want.PodCIDRs) || !slices.Equal(c.ServiceCIDRs, want.ServiceCIDRs) || c.BindPort != want.BindPort {
		t.Errorf("%+v, want %+v", c, want)
	}
}

func TestAPathBecomesAbsolute(t *testing.T) {
	c, err := parse("--advertise-address=192.0.2.1", "--state-dir=state")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(c.StateDir, "/") || !strings.HasSuffix(c.StateDir, "/state") {
		t.Error(c.StateDir)
	}
}

func TestABadValueIsReportedByTheNameOfItsFlag(t *testing.T) {
	for _, arg := range []string{"--pod-cidr=10.1.0.0", "--service-cidr=ten", "--advertise-address=here", "--bind-port=x"} {
		flag, _, _ := strings.Cut(arg, "=")
		if _, err := parse("--advertise-address=192.0.2.1", arg); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: error %v", arg, err)
		}
	}
}
