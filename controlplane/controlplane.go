// Package controlplane runs a Kubernetes control plane in one process.
//
//	state lock ─► PKI ─► etcd ─► API server ─► first objects ─► join file
//	                                    │
//	                                    ├─► Lease: controllers, upstream's and Weft's
//	                                    └─► Lease: scheduler
//
// Each stage begins when the one before is ready, and they stop in reverse.
// State is on disk before anybody is told about it, so the process may be
// killed at any moment.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"weft.dev/weft/controlplane/apiserver"
	"weft.dev/weft/controlplane/etcd"
	"weft.dev/weft/controlplane/manifests"
	"weft.dev/weft/controlplane/pki"
	"weft.dev/weft/controlplane/upstream"
)

const (
	// readyTimeout bounds the start of the API server, which has to read the
	// whole store.
	readyTimeout = 5 * time.Minute
	// firstObjectsTimeout bounds the creation of the first objects; the API
	// server makes the namespaces they are in after it says it is ready.
	firstObjectsTimeout = time.Minute
	// stopTimeout bounds how long requests in flight may keep the API server
	// from stopping.
	stopTimeout = 10 * time.Second
)

// Run runs the control plane until ctx is done, and then stops it gracefully.
// It returns nil then, and an error if something could not start or has failed.
func Run(ctx context.Context, cfg Config) error {
	begin := time.Now()
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	unlock, err := lockStateDir(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := pki.Open(cfg.pkiConfig())
	if err != nil {
		return fmt.Errorf("open PKI: %w", err)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	store, stopStore, err := startStore(ctx, cfg, keys, fail)
	if err != nil {
		return failure(ctx, err)
	}
	defer stopStore()
	server, stopServer, err := startServer(ctx, cfg, store, fail)
	if err != nil {
		return failure(ctx, err)
	}
	defer stopServer()
	if err := firstObjects(ctx, cfg, server.LoopbackConfig(), keys); err != nil {
		return failure(ctx, err)
	}
	cfg.Log.Info("Ready", "server", cfg.Server(), "kubeconfig", cfg.AdminKubeconfig(), "took", time.Since(begin).Round(time.Millisecond))
	return failure(ctx, work(ctx, cfg, server.LoopbackConfig(), keys))
}

// failure returns why ctx ended if a part of the control plane ended it, else
// err, else nil: being asked to stop is no failure.
func failure(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case cause == nil:
		return err
	case errors.Is(cause, context.Canceled), errors.Is(cause, context.DeadlineExceeded):
		return nil
	}
	return cause
}

// lockStateDir makes the directory and keeps other processes from using it.
func lockStateDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock state directory %s: does another weft-server use it? %w", dir, err)
	}
	return func() { lock.Close() }, nil
}

func (c Config) pkiConfig() pki.Config {
	var services []netip.Addr
	for _, p := range c.ServiceCIDRs {
		services = append(services, nthAddress(p, 1))
	}
	return pki.Config{
		Dir:              c.pkiDir(),
		ClusterName:      c.ClusterName,
		AdvertiseAddress: c.AdvertiseAddress,
		ServiceAddresses: services,
		ClusterDomain:    c.ClusterDomain,
		ExtraSANs:        c.TLSSANs,
		Log:              c.Log,
	}
}

// startStore starts etcd in this process, unless another is to be used.
func startStore(ctx context.Context, cfg Config, keys *pki.PKI, fail context.CancelCauseFunc) (apiserver.Etcd, func(), error) {
	if len(cfg.ExternalEtcd.Endpoints) > 0 {
		return cfg.ExternalEtcd, func() {}, nil
	}
	member, err := etcd.Start(ctx, etcd.Config{
		Dir:        filepath.Join(cfg.StateDir, "etcd"),
		ClientPort: cfg.EtcdClientPort,
		PeerPort:   cfg.EtcdPeerPort,
		CAFile:     keys.Path(pki.EtcdCA),
		CertFile:   keys.Path(pki.EtcdServerCert),
		KeyFile:    keys.Path(pki.EtcdServerKey),
		Log:        cfg.Log,
	})
	if err != nil {
		return apiserver.Etcd{}, nil, err
	}
	go func() {
		if err, failed := <-member.Err(); failed {
			fail(fmt.Errorf("etcd failed: %w", err))
		}
	}()
	return apiserver.Etcd{Endpoints: []string{member.LocalEndpoint()}, Client: member.Client}, member.Close, nil
}

// startServer starts the API server and returns when it is ready. It serves
// until stop is called, so that what needs it can stop first.
func startServer(ctx context.Context, cfg Config, store apiserver.Etcd, fail context.CancelCauseFunc) (*apiserver.Server, func(), error) {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	server, err := apiserver.New(serving, apiserver.Config{
		PKIDir:           cfg.pkiDir(),
		Dir:              filepath.Join(cfg.StateDir, "apiserver"),
		AdvertiseAddress: cfg.AdvertiseAddress,
		BindPort:         cfg.BindPort,
		ServiceCIDRs:     cfg.ServiceCIDRs,
		ClusterDomain:    cfg.ClusterDomain,
		Etcd:             store,
	})
	if err != nil {
		cancel()
		return nil, nil, err
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		err := server.Run(serving)
		if serving.Err() == nil {
			fail(errors.Join(errors.New("API server stopped"), err))
		}
	}()
	stop := func() {
		cancel()
		select {
		case <-stopped:
		case <-time.After(stopTimeout):
			cfg.Log.Warn("API server still answers requests and is stopped all the same", "after", stopTimeout)
		}
	}
	ready, cancelReady := context.WithTimeout(ctx, readyTimeout)
	defer cancelReady()
	if err := server.WaitReady(ready); err != nil {
		letStart(ctx, server)
		stop()
		return nil, nil, err
	}
	return server, stop, nil
}

// letStart lets a start that is no longer wanted come to its end: upstream ends
// the whole process when one of its start hooks is interrupted
// (k8s.io/apiserver/pkg/server/hooks.go).
func letStart(ctx context.Context, server *apiserver.Server) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	// Whether it succeeds makes no difference: it is stopped next.
	_ = server.WaitReady(ctx)
}

// firstObjects brings the objects that every cluster starts with, and then
// tells administrators and nodes how to come in.
func firstObjects(ctx context.Context, cfg Config, loopback *rest.Config, keys *pki.PKI) error {
	info, err := pki.Kubeconfig("", cfg.Server(), keys.ClusterCA(), "", nil, nil)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(loopback)
	if err != nil {
		return fmt.Errorf("make loopback client: %w", err)
	}
	values := manifests.Values{
		ClusterDNS:  nthAddress(cfg.ServiceCIDRs[0], 10),
		ClusterInfo: string(info),
	}
	err = retry(ctx, firstObjectsTimeout, func() error {
		if err := manifests.Apply(ctx, loopback, values); err != nil {
			return err
		}
		return ensureJoin(ctx, cfg, client, keys)
	})
	if err != nil {
		return fmt.Errorf("create first objects: %w", err)
	}
	return keys.IssueAdmin(cfg.AdminKubeconfig(), cfg.Server())
}

// retry calls f until it succeeds, and returns its last error when timeout has
// passed or ctx is done.
func retry(ctx context.Context, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// work runs what needs a ready API server until ctx is done.
func work(ctx context.Context, cfg Config, loopback *rest.Config, keys *pki.PKI) error {
	identity, err := serverID(filepath.Join(cfg.StateDir, "server-id"))
	if err != nil {
		return err
	}
	named := func(name string) lease {
		return lease{name: name, identity: identity, loopback: loopback, log: cfg.Log}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return keys.Run(ctx) })
	group.Go(func() error {
		return named("kube-controller-manager").lead(ctx, func(ctx context.Context) error {
			return upstream.RunControllers(ctx, upstream.Config{
				Loopback:               loopback,
				CACertFile:             keys.Path(pki.ClusterCA),
				CAKeyFile:              keys.Path(pki.ClusterCAKey),
				RootCA:                 keys.ClusterCA(),
				ServiceAccountKeyFile:  keys.Path(pki.ServiceAccountKey),
				SigningDuration:        pki.LeafLifetime,
				NodeMonitorGracePeriod: cfg.NodeMonitorGracePeriod,
				Also:                   ownControllers(cfg, loopback),
				Log:                    cfg.Log,
			})
		})
	})
	group.Go(func() error {
		return named("kube-scheduler").lead(ctx, func(ctx context.Context) error {
			return upstream.RunScheduler(ctx, loopback)
		})
	})
	return group.Wait()
}
