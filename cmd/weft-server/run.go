package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane"
)

const runExample = `  # A control plane on this machine; state in /var/lib/weft/server.
  weft-server run

  # At a given address, with addresses of a cluster's own.
  weft-server run --advertise-address 192.0.2.10 --pod-cidr 10.20.0.0/16 --service-cidr 10.21.0.0/16

  # Both families.
  weft-server run --pod-cidr 10.244.0.0/16,fd00:244::/48 --service-cidr 10.96.0.0/16,fd00:96::/112

  # On an etcd that is already there.
  weft-server run --etcd-endpoints https://192.0.2.20:2379 --etcd-cafile ca.crt --etcd-certfile client.crt --etcd-keyfile client.key`

// runFlags are the flags of "run" that a Config cannot take as they are.
type runFlags struct {
	config       controlplane.Config
	serviceCIDRs []string
	podCIDRs     []string
	verbosity    int
}

func newRunCommand() *cobra.Command {
	f := &runFlags{config: controlplane.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the control plane until SIGTERM",
		Long: `Run the control plane until SIGTERM.

Everything lasting is in the state directory: keys, database, admin.kubeconfig
for people, join.json for nodes. The last two are written when the control plane
is ready. Killing the process at any moment loses nothing.`,
		Example: runExample,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			// A second signal ends the process at once.
			context.AfterFunc(ctx, stop)
			return f.run(ctx)
		},
	}
	f.addTo(cmd.Flags())
	cmd.SetContext(context.Background())
	return cmd
}

func (f *runFlags) addTo(fs *pflag.FlagSet) {
	c := &f.config
	fs.StringVar(&c.StateDir, "state-dir", "/var/lib/weft/server", "directory of everything that must survive a restart")
	fs.StringVar(&c.ClusterName, "cluster-name", c.ClusterName, "name of the cluster in certificates and kubeconfigs")
	fs.TextVar(&c.AdvertiseAddress, "advertise-address", netip.Addr{}, "address at which nodes reach this server (default: that of the default route)")
	fs.IntVar(&c.BindPort, "bind-port", c.BindPort, "TCP port of the API server")
	fs.StringSliceVar(&f.podCIDRs, "pod-cidr", texts(c.PodCIDRs), "prefix of pod addresses; two for both families")
	fs.StringSliceVar(&f.serviceCIDRs, "service-cidr", texts(c.ServiceCIDRs), "prefix of Service addresses; two for both families")
	fs.IntVar(&c.NodeMaskIPv4, "node-cidr-mask-size-ipv4", c.NodeMaskIPv4, "prefix length of a node's IPv4 pod addresses")
	fs.IntVar(&c.NodeMaskIPv6, "node-cidr-mask-size-ipv6", c.NodeMaskIPv6, "prefix length of a node's IPv6 pod addresses")
	fs.StringVar(&c.ClusterDomain, "cluster-domain", c.ClusterDomain, "DNS suffix of Services")
	fs.StringSliceVar(&c.TLSSANs, "tls-san", nil, "more names and addresses for the serving certificate")
	fs.DurationVar(&c.NodeMonitorGracePeriod, "node-monitor-grace-period", c.NodeMonitorGracePeriod, "how long a node may be silent before it counts as not ready")

	fs.StringSliceVar(&c.ExternalEtcd.Endpoints, "etcd-endpoints", nil, "URLs of an etcd to use instead of one in this process")
	fs.StringVar(&c.ExternalEtcd.CAFile, "etcd-cafile", "", "CA of that etcd")
	fs.StringVar(&c.ExternalEtcd.CertFile, "etcd-certfile", "", "client certificate for that etcd")
	fs.StringVar(&c.ExternalEtcd.KeyFile, "etcd-keyfile", "", "key of the client certificate for that etcd")
	fs.IntVar(&c.EtcdClientPort, "etcd-client-port", c.EtcdClientPort, "loopback TCP port of the etcd in this process, for clients")
	fs.IntVar(&c.EtcdPeerPort, "etcd-peer-port", c.EtcdPeerPort, "loopback TCP port of the etcd in this process, for peers")

	fs.IntVarP(&f.verbosity, "v", "v", 0, "how much the Kubernetes parts log: 0 warnings, 2 steps, 4 details, 6 requests")
	compatibility.DefaultComponentGlobalsRegistry.AddFlags(fs)
	// Upstream's texts list every gate there is.
	fs.Lookup("feature-gates").Usage = "Kubernetes feature gates, as NAME=true or NAME=false"
	fs.Lookup("min-compatibility-version").Hidden = true
	fs.Lookup("emulated-version").Usage = "Kubernetes version to behave like, as MAJOR.MINOR"
}

// run is the one place that sets what is global to the process: logging,
// feature gates and the handling of API warnings.
func (f *runFlags) run(ctx context.Context) error {
	setupLogging(f.verbosity)
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if err := compatibility.DefaultComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("--feature-gates: %w", err)
	}
	config, err := f.complete()
	if err != nil {
		return err
	}
	if err := controlplane.Tune(); err != nil {
		slog.Warn("the server will use more processor time than it has to", "error", err)
	}
	return controlplane.Run(ctx, config)
}

func (f *runFlags) complete() (controlplane.Config, error) {
	c := f.config
	var err error
	if c.StateDir, err = filepath.Abs(c.StateDir); err != nil {
		return c, fmt.Errorf("--state-dir: %w", err)
	}
	if c.PodCIDRs, err = prefixes("--pod-cidr", f.podCIDRs); err != nil {
		return c, err
	}
	if c.ServiceCIDRs, err = prefixes("--service-cidr", f.serviceCIDRs); err != nil {
		return c, err
	}
	if !c.AdvertiseAddress.IsValid() {
		if c.AdvertiseAddress, err = defaultAddress(); err != nil {
			return c, fmt.Errorf("--advertise-address: must be set, none could be found: %w", err)
		}
	}
	return c, nil
}

func defaultAddress() (netip.Addr, error) {
	ip, err := utilnet.ChooseHostInterface()
	if err != nil {
		return netip.Addr{}, err
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap(), nil
}

func prefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func texts(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}
