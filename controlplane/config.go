package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/apiserver"
)

// Config says what cluster to run and where. Start from DefaultConfig.
type Config struct {
	// StateDir holds everything that must survive: keys, database, join file.
	// An absolute path; one process uses it at a time.
	StateDir string
	// ClusterName names the cluster in certificates and kubeconfigs.
	ClusterName string
	// AdvertiseAddress is where nodes reach this server; not a loopback address.
	AdvertiseAddress netip.Addr
	// BindPort is the API server's TCP port, on all addresses.
	BindPort int
	// ServiceCIDRs are the prefixes of Service addresses: one, or one of each family.
	ServiceCIDRs []netip.Prefix
	// PodCIDRs are the prefixes of pod addresses: one, or one of each family.
	PodCIDRs []netip.Prefix
	// NodeMaskIPv4 and NodeMaskIPv6 are the prefix lengths of one node's share
	// of the pod prefix of that family.
	NodeMaskIPv4, NodeMaskIPv6 int
	// ClusterDomain is the DNS suffix of Services.
	ClusterDomain string
	// TLSSANs are more names and addresses for the serving certificate.
	TLSSANs []string
	// NodeMonitorGracePeriod is how long a node may be silent before it counts
	// as not ready.
	NodeMonitorGracePeriod time.Duration
	// ExternalEtcd, if it has endpoints, is used instead of an etcd in this
	// process.
	ExternalEtcd apiserver.Etcd
	// EtcdClientPort and EtcdPeerPort are for the etcd in this process, on
	// the loopback interface.
	EtcdClientPort, EtcdPeerPort int
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// DefaultConfig returns the defaults; StateDir and AdvertiseAddress are left
// for the caller.
func DefaultConfig() Config {
	return Config{
		ClusterName:            "weft",
		BindPort:               6443,
		ServiceCIDRs:           []netip.Prefix{netip.MustParsePrefix(api.DefaultServiceCIDR)},
		PodCIDRs:               []netip.Prefix{netip.MustParsePrefix(api.DefaultPodCIDR)},
		NodeMaskIPv4:           24,
		NodeMaskIPv6:           64,
		ClusterDomain:          api.DefaultClusterDomain,
		NodeMonitorGracePeriod: 40 * time.Second,
		EtcdClientPort:         2379,
		EtcdPeerPort:           2380,
	}
}

// AdminKubeconfig is the administrator's kubeconfig.
func (c Config) AdminKubeconfig() string { return filepath.Join(c.StateDir, "admin.kubeconfig") }

// JoinFile tells a node's agent how to join.
func (c Config) JoinFile() string { return filepath.Join(c.StateDir, "join.json") }

// Server is the URL of the API server.
func (c Config) Server() string {
	return "https://" + net.JoinHostPort(c.AdvertiseAddress.String(), strconv.Itoa(c.BindPort))
}

func (c Config) pkiDir() string { return filepath.Join(c.StateDir, "pki") }

// validate reports every mistake, each by the name of its flag.
func (c Config) validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(c.StateDir) {
		complain("--state-dir: must be an absolute path, not %q", c.StateDir)
	}
	if c.ClusterName == "" {
		complain("--cluster-name: must be set")
	}
	if c.ClusterDomain == "" {
		complain("--cluster-domain: must be set")
	}
	if a := c.AdvertiseAddress; !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() {
		complain("--advertise-address: must be an address of this machine that nodes can reach, not %q", a)
	}
	if c.NodeMonitorGracePeriod <= 0 {
		complain("--node-monitor-grace-period: must be positive, not %s", c.NodeMonitorGracePeriod)
	}
	errs = append(errs, checkPort("--bind-port", c.BindPort))
	if len(c.ExternalEtcd.Endpoints) == 0 {
		errs = append(errs, checkPort("--etcd-client-port", c.EtcdClientPort), checkPort("--etcd-peer-port", c.EtcdPeerPort))
	}
	errs = append(errs, checkPrefixes("--service-cidr", c.ServiceCIDRs), checkPrefixes("--pod-cidr", c.PodCIDRs))
	errs = append(errs, c.checkServicePrefix(), c.checkOverlap())
	for _, p := range c.PodCIDRs {
		errs = append(errs, c.checkNodeMask(p))
	}
	return errors.Join(errs...)
}

func checkPort(flag string, port int) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("%s: %d is not a TCP port", flag, port)
	}
	return nil
}

func checkPrefixes(flag string, prefixes []netip.Prefix) error {
	if len(prefixes) == 0 || len(prefixes) > 2 {
		return fmt.Errorf("%s: must be one prefix, or one of each family, not %d", flag, len(prefixes))
	}
	for _, p := range prefixes {
		if p != p.Masked() {
			return fmt.Errorf("%s: %s has bits set after its prefix; %s is meant", flag, p, p.Masked())
		}
	}
	if len(prefixes) == 2 && prefixes[0].Addr().Is4() == prefixes[1].Addr().Is4() {
		return fmt.Errorf("%s: %s and %s are of the same family", flag, prefixes[0], prefixes[1])
	}
	return nil
}

// checkServicePrefix makes sure that cluster DNS, the tenth address, exists and
// that upstream's limit on IPv6 (20 bits of addresses) is kept.
func (c Config) checkServicePrefix() error {
	for _, p := range c.ServiceCIDRs {
		if host := p.Addr().BitLen() - p.Bits(); host < 4 || host > 20 {
			return fmt.Errorf("--service-cidr: %s must hold between 2^4 and 2^20 addresses", p)
		}
	}
	return nil
}

func (c Config) checkOverlap() error {
	for _, s := range c.ServiceCIDRs {
		for _, p := range c.PodCIDRs {
			if s.Overlaps(p) {
				return fmt.Errorf("--service-cidr: %s overlaps --pod-cidr %s", s, p)
			}
		}
	}
	return nil
}

func (c Config) checkNodeMask(p netip.Prefix) error {
	flag, mask, longest := "--node-cidr-mask-size-ipv4", c.NodeMaskIPv4, 30
	if p.Addr().Is6() {
		flag, mask, longest = "--node-cidr-mask-size-ipv6", c.NodeMaskIPv6, 126
	}
	if mask < p.Bits() || mask > longest {
		return fmt.Errorf("%s: must be from %d (that of %s) to %d, not %d", flag, p.Bits(), p, longest, mask)
	}
	return nil
}

// nthAddress returns the nth address of p, counted from its first as zero.
func nthAddress(p netip.Prefix, n int) netip.Addr {
	addr := p.Masked().Addr()
	for range n {
		addr = addr.Next()
	}
	return addr
}
