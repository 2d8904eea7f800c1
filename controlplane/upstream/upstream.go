// Package upstream wires Kubernetes' own housekeeping controllers and its
// scheduler into this process. Nothing here decides anything: it is a list of
// constructors, each with a client of its own identity.
//
//	env (informers, mapper, GC graph) ─► controllers[i].new(env) ─► run(ctx)
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
)

// Config is what the controllers need from their surroundings.
type Config struct {
	// Loopback reaches the API server with all rights.
	Loopback *rest.Config
	// CACertFile and CAKeyFile are the cluster CA that signs node certificates.
	CACertFile, CAKeyFile string
	// RootCA in PEM is published to every namespace as kube-root-ca.crt.
	RootCA []byte
	// ServiceAccountKeyFile signs tokens kept in Secrets.
	ServiceAccountKeyFile string
	// SigningDuration is how long certificates of the CSR API are valid.
	SigningDuration time.Duration
	// NodeMonitorGracePeriod is how long a node may be silent before it counts
	// as not ready.
	NodeMonitorGracePeriod time.Duration
	// Also, if set, makes more controllers on the same informers, which are
	// started when it has returned.
	Also func(informers.SharedInformerFactory) ([]func(context.Context) error, error)
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

func (c Config) validate() error {
	switch {
	case c.Loopback == nil:
		return errors.New("upstream controllers: loopback configuration must be set")
	case c.NodeMonitorGracePeriod <= 0:
		return errors.New("upstream controllers: node monitor grace period must be positive")
	case c.SigningDuration <= 0:
		return errors.New("upstream controllers: signing duration must be positive")
	}
	return nil
}

// env is what the controllers share.
type env struct {
	Config
	informers informers.SharedInformerFactory
	// anyInformers adds informers of any resource, by metadata alone.
	anyInformers informerfactory.InformerFactory
	mapper       *restmapper.DeferredDiscoveryRESTMapper
	graph        *garbagecollector.GraphBuilder
	// started is closed once informers made so far have been started.
	started chan struct{}
}

// runFunc works until ctx is done.
type runFunc func(ctx context.Context)

// RunControllers builds every controller, starts them all and returns when
// ctx is done, or one of cfg.Also has failed, and each of them has stopped. It
// may be called again then.
func RunControllers(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e, err := newEnv(ctx, cfg)
	if err != nil {
		return err
	}
	runs, err := e.build(ctx)
	if err != nil {
		return err
	}
	var also []func(context.Context) error
	if cfg.Also != nil {
		if also, err = cfg.Also(e.informers); err != nil {
			return err
		}
	}
	e.informers.Start(ctx.Done())
	defer e.informers.Shutdown()
	e.anyInformers.Start(ctx.Done())
	close(e.started)

	running, ctx := errgroup.WithContext(ctx)
	for _, run := range append(runs, e.refreshMapper) {
		running.Go(func() error {
			run(ctx)
			return nil
		})
	}
	for _, run := range also {
		running.Go(func() error { return run(ctx) })
	}
	cfg.Log.Info("Controllers started", "upstream", len(runs), "own", len(also))
	return running.Wait()
}

func newEnv(ctx context.Context, cfg Config) (*env, error) {
	root := AsUser(cfg.Loopback, ControllerManagerUser)
	client, err := kubernetes.NewForConfig(root)
	if err != nil {
		return nil, fmt.Errorf("make client of shared informers: %w", err)
	}
	metadataClient, err := metadata.NewForConfig(root)
	if err != nil {
		return nil, fmt.Errorf("make metadata client: %w", err)
	}
	typed := informers.NewSharedInformerFactoryWithOptions(client, resync(), informers.WithTransform(trim))
	byMetadata := metadatainformer.NewSharedInformerFactoryWithOptions(metadataClient, resync(), metadatainformer.WithTransform(trim))
	e := &env{
		Config:       cfg,
		informers:    typed,
		anyInformers: informerfactory.NewInformerFactory(typed, byMetadata),
		mapper:       restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery())),
		started:      make(chan struct{}),
	}
	ignored := map[schema.GroupResource]struct{}{}
	for r := range garbagecollector.DefaultIgnoredResources() {
		ignored[r] = struct{}{}
	}
	e.graph = garbagecollector.NewDependencyGraphBuilder(ctx, metadataClient, e.mapper, ignored, e.anyInformers, e.started)
	return e, nil
}

// build constructs the controllers whose feature gate is on.
func (e *env) build(ctx context.Context) ([]runFunc, error) {
	var runs []runFunc
	for _, c := range controllers {
		if c.gate != "" && !utilfeature.DefaultFeatureGate.Enabled(c.gate) {
			continue
		}
		run, err := c.new(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("build controller %s: %w", c.name, err)
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// mapperRefresh is how long a new CustomResourceDefinition may stay unknown to
// the garbage collector, quota and autoscaling; as in upstream's program.
const mapperRefresh = 30 * time.Second

func (e *env) refreshMapper(ctx context.Context) {
	wait.UntilWithContext(ctx, func(context.Context) { e.mapper.Reset() }, mapperRefresh)
}

// resync returns 12 to 24 hours, so that controllers do not resync in step.
func resync() time.Duration {
	return 12*time.Hour + rand.N(12*time.Hour)
}

// trim keeps managed fields, which no controller reads, out of memory.
func trim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil {
		accessor.SetManagedFields(nil)
	}
	return obj, nil
}

// together runs several parts of one controller.
func together(parts ...runFunc) runFunc {
	return func(ctx context.Context) {
		var running sync.WaitGroup
		for _, part := range parts {
			running.Go(func() { part(ctx) })
		}
		running.Wait()
	}
}
