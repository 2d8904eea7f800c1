// Package agent runs a node: it joins the cluster, then starts the node's
// components and stops them together.
//
//	join ─► client, informers ─► dataplane ─► network, dns, ingress
//	                                       └► node, objects, volumes, pods, server
//
// Components share nothing but the API server, the container runtime and the
// kernel; pods and network meet only through CRI and CNI.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"weft.dev/weft/agent/cgroup2"
	"weft.dev/weft/agent/containerd"
	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/join"
	"weft.dev/weft/agent/volumes"
	"weft.dev/weft/cni/install"
	"weft.dev/weft/dataplane"
)

// Run is the node's agent. It returns nil when ctx is done: pods, programs
// and routes then stay as they are, and the next agent takes them over.
func Run(ctx context.Context, cfg Config) error {
	settings, err := cfg.parse()
	if err != nil {
		return fmt.Errorf("agent configuration: %w", err)
	}
	for _, dir := range []string{cfg.StateDir, cfg.RunDir, cfg.logDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	runtime, err := cri.Dial(strings.TrimPrefix(cfg.RuntimeEndpoint, "unix://"), slog.Default())
	if err != nil {
		return err
	}
	defer runtime.Close()

	// Joining waits for the server, preparing for the runtime: side by side.
	var client kubernetes.Interface
	group, preparing := errgroup.WithContext(ctx)
	group.Go(func() (err error) { client, err = connect(ctx, preparing, cfg); return err })
	group.Go(func() error { return prepare(preparing, cfg, runtime) })
	if err := group.Wait(); err != nil {
		return err
	}

	kernel, err := openDataplane(ctx, cfg)
	if err != nil {
		return err
	}
	defer kernel.Close()
	all, err := assemble(cfg, settings, client, runtime, kernel)
	if err != nil {
		return err
	}
	slog.Info("agent runs", "node", cfg.NodeName, "addresses", cfg.NodeIPs)
	return all.run(ctx)
}

// connect joins the cluster and returns this node's client. The certificate
// is renewed until ctx is done; waiting ends with waiting.
func connect(ctx, waiting context.Context, cfg Config) (kubernetes.Interface, error) {
	ticket, err := cfg.ticket(waiting)
	if err != nil {
		return nil, err
	}
	config, err := join.Client(ctx, ticket)
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // the server's own fairness protects it
	config.UserAgent = "weft-agent/" + cfg.Version
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return kubernetes.NewForConfig(config)
}

// prepare makes what pods need of this machine before any component runs:
// directories, network configuration, and the image of their infrastructure
// container.
func prepare(ctx context.Context, cfg Config, runtime *cri.Client) error {
	if err := volumes.EnsureSharedDir(cfg.kubeletDir()); err != nil {
		return err
	}
	err := install.Install(install.Config{ConfDir: cfg.CNIConfDir, Socket: cfg.cniSocket(), DelDir: cfg.delDir()})
	if err != nil {
		return fmt.Errorf("install network configuration: %w", err)
	}
	if err := awaitRuntime(ctx, runtime); err != nil {
		return err
	}
	return ensureSandboxImage(ctx, cfg.SandboxArchive, runtime)
}

// awaitRuntime waits for the runtime to answer; its network need not be ready
// yet, since that is this agent's to provide.
func awaitRuntime(ctx context.Context, runtime *cri.Client) error {
	for logged := false; ; {
		_, err := runtime.Version(ctx)
		if err == nil {
			return nil
		}
		if !logged {
			slog.Info("waiting for the container runtime", "error", err)
			logged = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("container runtime: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func ensureSandboxImage(ctx context.Context, archive string, runtime *cri.Client) error {
	image, err := runtime.ImageStatus(ctx, containerd.SandboxImage)
	if err != nil || image != nil {
		return err
	}
	file, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("image %s of the infrastructure container: %w", containerd.SandboxImage, err)
	}
	defer file.Close()
	if _, err := cri.ImportImages(ctx, runtime.Conn(), file); err != nil {
		return fmt.Errorf("import %s: %w", archive, err)
	}
	return nil
}

// openDataplane takes over what an earlier agent left in the kernel.
func openDataplane(ctx context.Context, cfg Config) (*dataplane.Dataplane, error) {
	root, err := cgroup2.Root()
	if err != nil {
		return nil, err
	}
	cgroup := filepath.Join(root, cfg.Cgroup)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, err
	}
	return dataplane.Open(ctx, dataplane.Config{
		PinDir:     cfg.PinDir,
		CgroupPath: cgroup,
		Routing:    dataplane.Routing(cfg.Routing),
	})
}

func (c Config) kubeletDir() string  { return filepath.Join(c.StateDir, "kubelet") }
func (c Config) volumesDir() string  { return filepath.Join(c.StateDir, "volumes") }
func (c Config) identityDir() string { return filepath.Join(c.StateDir, "identity") }
func (c Config) logDir() string      { return filepath.Join(c.StateDir, "logs", "pods") }

// podFiles are the directories in which a pod fills the node's disk, apart
// from its containers' own file systems.
func (c Config) podFiles(uid types.UID, namespace, name string) []string {
	return []string{
		filepath.Join(c.kubeletDir(), "pods", string(uid), "volumes", "kubernetes.io~empty-dir"),
		filepath.Join(c.logDir(), namespace+"_"+name+"_"+string(uid)),
	}
}

func (c Config) cniSocket() string { return filepath.Join(c.RunDir, "cni.sock") }
func (c Config) delDir() string    { return filepath.Join(c.StateDir, "cni", "deleted") }

// components run side by side; the first that fails ends all.
type components []component

type component struct {
	name string
	run  func(context.Context) error
}

func (all components) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range all {
		group.Go(func() error {
			err := c.run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("ended without an error")
			}
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}
