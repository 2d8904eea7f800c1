package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"

	"weft.dev/weft/controlplane"
	"weft.dev/weft/controlplane/apiserver"
	"weft.dev/weft/controlplane/controllers"
	"weft.dev/weft/controlplane/etcd"
	"weft.dev/weft/controlplane/manifests"
	"weft.dev/weft/controlplane/pki"
	"weft.dev/weft/controlplane/upstream"
)

// The parts that run in processes of their own.
const (
	partAPIServer = "apiserver"
	partServer    = "server"
	partWeft      = "weft"
	partOurs      = "ours"
	partUpstream  = "upstream"
)

// runPart runs a part in this process and writes its CPU profile, if there is
// a file for it. partWeft needs its profile itself, see control.
func runPart(ctx context.Context, run func(context.Context, []string) error, args []string) error {
	if name := os.Getenv(profileFile); name != "" {
		file, err := os.Create(name)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return run(ctx, args)
}

// tuned returns a part that runs in a process like weft-server's.
func tuned(part func(context.Context, []string) error) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		if err := controlplane.Tune(); err != nil {
			return err
		}
		return part(ctx, args)
	}
}

// serverAddress is the API server's; it must not be a loopback address.
var serverAddress = netip.MustParseAddr("192.0.2.1")

// addAddress makes a device with the server's address, and brings the loopback
// interface up.
func addAddress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0-peer"}
	addr, err := netlink.ParseAddr(serverAddress.String() + "/24")
	if err != nil {
		return err
	}
	err = errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(veth))
	if err == nil {
		err = errors.Join(netlink.AddrAdd(veth, addr), netlink.LinkSetUp(veth))
	}
	if err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	return nil
}

// config is the control plane in the state directory given by --state-dir.
func config(part string, args []string) (controlplane.Config, error) {
	cfg := controlplane.DefaultConfig()
	cfg.AdvertiseAddress = serverAddress
	// Simulated nodes renew no lease.
	cfg.NodeMonitorGracePeriod = 24 * time.Hour
	flags := flag.NewFlagSet(part, flag.ContinueOnError)
	flags.StringVar(&cfg.StateDir, "state-dir", "", "state directory")
	err := flags.Parse(args)
	return cfg, errors.Join(err, compatibility.DefaultComponentGlobalsRegistry.Set())
}

// runServer runs all of weft-server.
func runServer(ctx context.Context, args []string) error {
	cfg, err := config(partServer, args)
	if err != nil {
		return err
	}
	return controlplane.Run(ctx, cfg)
}

// runAPIServer runs weft-server's store and API server without any controller
// or scheduler.
func runAPIServer(ctx context.Context, args []string) error {
	cfg, err := config(partAPIServer, args)
	if err != nil {
		return err
	}
	return serve(ctx, cfg, func(context.Context, *rest.Config) error { return nil })
}

// runWeft runs the same, and Weft's controllers in the same process when it is
// told to, as weft-server does.
func runWeft(ctx context.Context, args []string) error {
	cfg, err := config(partWeft, args)
	if err != nil {
		return err
	}
	pprof.SetGoroutineLabels(serverLabel)
	return serve(ctx, cfg, func(ctx context.Context, loopback *rest.Config) error {
		return runControl(ctx, cfg.StateDir, loopback)
	})
}

// etcdDir is where the store is in a state directory, as weft-server's is.
func etcdDir(stateDir string) string { return filepath.Join(stateDir, "etcd") }

// serve runs the store and the API server, and beside them, once there is a
// kubeconfig, what is given a configuration for clients in this process.
func serve(ctx context.Context, cfg controlplane.Config, beside func(context.Context, *rest.Config) error) error {
	pkiDir := filepath.Join(cfg.StateDir, "pki")
	keys, err := pki.Open(pki.Config{
		Dir:              pkiDir,
		ClusterName:      cfg.ClusterName,
		AdvertiseAddress: cfg.AdvertiseAddress,
		ServiceAddresses: []netip.Addr{cfg.ServiceCIDRs[0].Addr().Next()},
		ClusterDomain:    cfg.ClusterDomain,
	})
	if err != nil {
		return err
	}
	member, err := etcd.Start(ctx, etcd.Config{
		Dir:        etcdDir(cfg.StateDir),
		ClientPort: cfg.EtcdClientPort,
		PeerPort:   cfg.EtcdPeerPort,
		CAFile:     keys.Path(pki.EtcdCA),
		CertFile:   keys.Path(pki.EtcdServerCert),
		KeyFile:    keys.Path(pki.EtcdServerKey),
	})
	if err != nil {
		return err
	}
	defer member.Close()
	server, err := apiserver.New(ctx, apiserver.Config{
		PKIDir:           pkiDir,
		Dir:              filepath.Join(cfg.StateDir, "apiserver"),
		AdvertiseAddress: cfg.AdvertiseAddress,
		BindPort:         cfg.BindPort,
		ServiceCIDRs:     cfg.ServiceCIDRs,
		ClusterDomain:    cfg.ClusterDomain,
		Etcd:             apiserver.Etcd{Endpoints: []string{member.LocalEndpoint()}, Client: member.Client},
	})
	if err != nil {
		return err
	}
	serving, ctx := errgroup.WithContext(ctx)
	serving.Go(func() error { return server.Run(ctx) })
	serving.Go(func() error {
		if err := firstObjects(ctx, cfg, server, keys); err != nil {
			return err
		}
		return beside(ctx, server.LoopbackConfig())
	})
	return serving.Wait()
}

// firstObjects brings the objects that every Weft cluster starts with, and
// then writes the administrator's kubeconfig.
func firstObjects(ctx context.Context, cfg controlplane.Config, server *apiserver.Server, keys *pki.PKI) error {
	if err := server.WaitReady(ctx); err != nil {
		return err
	}
	values := manifests.Values{ClusterDNS: netip.MustParseAddr("10.96.0.10")}
	err := eventually(ctx, time.Minute, func() error { return manifests.Apply(ctx, server.LoopbackConfig(), values) })
	if err != nil {
		return fmt.Errorf("create first objects: %w", err)
	}
	return keys.IssueAdmin(cfg.AdminKubeconfig(), cfg.Server())
}

// eventually calls f until it succeeds, and returns its last error after timeout.
func eventually(ctx context.Context, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// runOurs runs Weft's controllers as clients over the network.
func runOurs(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(partOurs, flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "administrator's kubeconfig")
	if err := flags.Parse(args); err != nil {
		return err
	}
	admin, err := clientConfig(*kubeconfig)
	if err != nil {
		return err
	}
	return runControllers(ctx, admin)
}

// runControllers runs all of Weft's controllers, as weft-server does: each as
// the service account of its name, on shared informers, with no limit of its own.
func runControllers(ctx context.Context, admin *rest.Config) error {
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactoryWithOptions(client, 12*time.Hour, informers.WithTransform(trim))
	cfg := controlplane.DefaultConfig()
	var clientErr error
	runners, err := controllers.New(controllers.Deps{
		Client: func(name string) kubernetes.Interface {
			client, err := kubernetes.NewForConfig(upstream.AsServiceAccount(admin, name))
			clientErr = errors.Join(clientErr, err)
			return client
		},
		Dynamic: func(name string) dynamic.Interface {
			client, err := dynamic.NewForConfig(upstream.AsServiceAccount(admin, name))
			clientErr = errors.Join(clientErr, err)
			return client
		},
		Informers:    shared,
		PodCIDRs:     cfg.PodCIDRs,
		NodeMaskIPv4: cfg.NodeMaskIPv4,
		NodeMaskIPv6: cfg.NodeMaskIPv6,
		Log:          slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err := errors.Join(err, clientErr); err != nil {
		return err
	}
	shared.Start(ctx.Done())
	defer shared.Shutdown()
	running, ctx := errgroup.WithContext(ctx)
	for _, r := range runners {
		running.Go(func() error { return r.Run(ctx) })
	}
	return running.Wait()
}

// clientConfig returns a configuration like that of weft-server's own clients
// and of kube-controller-manager: protobuf, uncompressed; no rate limit.
func clientConfig(kubeconfig string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	cfg.DisableCompression = true
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	return cfg, nil
}

// trim keeps managed fields out of memory, as weft-server and
// kube-controller-manager do.
func trim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil {
		accessor.SetManagedFields(nil)
	}
	return obj, nil
}

// runUpstream runs kube-controller-manager; args are its own flags.
func runUpstream(ctx context.Context, args []string) error {
	cmd := kcm.NewControllerManagerCommand()
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}
