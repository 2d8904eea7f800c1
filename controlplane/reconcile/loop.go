// Package reconcile is the one concurrency pattern of Weft's controllers.
//
//	informers ─Watch─► queue of keys ─► N workers ─► Reconcile(key) ─► API server
//	     ▲                  ▲  back-off, exact times │                      │
//	     └──────────────────┴────────────────────────┴──── watch events ◄───┘
//
// A Loop calls Reconcile for one key at a time, never twice at once for the
// same key. Around it are the few rules that every controller needs and that
// naive ones miss: a Fence that keeps a decision from being taken on a cache
// older than the controller's own writes, Deletions that are still on their
// way to the cache, Claim for adoption and release, PodWriter and SlowStart for pods,
// History for ControllerRevisions, Events for users.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Runner is a controller that can be started.
type Runner interface {
	// Name is the controller's name in logs, user agents and RBAC.
	Name() string
	// Run works until ctx is done and then returns nil. It may be called once.
	Run(ctx context.Context) error
}

// Back-off of one key that keeps failing, and the wait for a cache that has
// not caught up. The latter is only a safety net: the awaited event itself
// queues the key.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 2 * time.Minute
	staleRetry = time.Second
)

// Config describes a Loop.
type Config struct {
	// Name of the controller.
	Name string
	// Workers is how many keys are worked on at once; 0 means 8.
	Workers int
	// Reconcile brings one object a step closer to its spec. It must be safe
	// to repeat. Cluster-scoped objects have an empty namespace.
	Reconcile func(ctx context.Context, key types.NamespacedName) error
	// FoldBursts lets a key rest after a slow run, so that what happens to its
	// objects meanwhile costs one run. It is for controllers that count
	// many pods, never for those on whose haste traffic depends.
	FoldBursts bool
	// Events, if set, is started and stopped with the loop.
	Events *Events
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// Loop queues keys and has them reconciled. Add and AddAfter may be called
// from anywhere at any time.
type Loop struct {
	cfg    Config
	queue  workqueue.TypedRateLimitingInterface[types.NamespacedName]
	synced []cache.InformerSynced
}

// NewLoop makes a Loop. Its queue accepts keys at once; they are worked on by Run.
func NewLoop(cfg Config) *Loop {
	if cfg.Workers == 0 {
		cfg.Workers = 8
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Log = cfg.Log.With("controller", cfg.Name)
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](firstRetry, lastRetry)
	return &Loop{cfg: cfg, queue: workqueue.NewTypedRateLimitingQueue(limiter)}
}

// Name returns the controller's name.
func (l *Loop) Name() string { return l.cfg.Name }

// Log returns the controller's logger.
func (l *Loop) Log() *slog.Logger { return l.cfg.Log }

// Add queues key, once however often it is added before a worker takes it.
func (l *Loop) Add(key types.NamespacedName) { l.queue.Add(key) }

// AddAfter queues key when d has passed; at once if d is not positive. Of
// several times only the nearest is kept, so Reconcile asks anew each time for
// the next moment that matters.
func (l *Loop) AddAfter(key types.NamespacedName, d time.Duration) { l.queue.AddAfter(key, d) }

// Run waits for every informer that the loop watches or reads, then works
// until ctx is done and its workers have returned.
func (l *Loop) Run(ctx context.Context) error {
	if l.cfg.Events != nil {
		l.cfg.Events.start()
		defer l.cfg.Events.stop()
	}
	defer l.queue.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), l.synced...) {
		return nil
	}
	var workers sync.WaitGroup
	for range l.cfg.Workers {
		workers.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	workers.Wait()
	return nil
}

// next works on one key and reports whether there may be more.
func (l *Loop) next(ctx context.Context) bool {
	key, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	begin := time.Now()
	l.settle(ctx, key, l.call(ctx, key))
	if rest := restAfter(time.Since(begin)); l.cfg.FoldBursts && rest > 0 {
		time.AfterFunc(rest, func() { l.queue.Done(key) })
	} else {
		l.queue.Done(key)
	}
	return true
}

// With FoldBursts a key rests after work that took long. What happens to its
// objects meanwhile is then handled in one pass. The busier the machine, the
// longer work takes, the more is folded; on an idle one, the rest is too short
// to be noticed. A run that was long in itself has folded enough.
const (
	restFactor  = 4
	shortestRun = time.Millisecond
	longestTurn = 100 * time.Millisecond // run and rest together
)

// restAfter is how long a key rests after a run that took this long.
func restAfter(run time.Duration) time.Duration {
	if run < shortestRun {
		return 0
	}
	return max(min(restFactor*run, longestTurn-run), 0)
}

// call turns a panic into an error: one bad object must not take the whole
// control plane down.
func (l *Loop) call(ctx context.Context, key types.NamespacedName) (err error) {
	defer func() {
		if p := recover(); p != nil {
			l.cfg.Log.Error("reconcile panicked", "object", key, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return l.cfg.Reconcile(ctx, key)
}

// settle decides when key is worked on again.
func (l *Loop) settle(ctx context.Context, key types.NamespacedName, err error) {
	switch {
	case err == nil, IsNamespaceTerminating(err), ctx.Err() != nil:
		l.queue.Forget(key)
	case errors.Is(err, ErrStale):
		l.queue.AddAfter(key, staleRetry)
	case apierrors.IsConflict(err):
		l.cfg.Log.Debug("object changed meanwhile, trying again", "object", key, "error", err)
		l.queue.AddRateLimited(key)
	default:
		l.cfg.Log.Warn("reconcile failed, trying again", "object", key, "retries", l.queue.NumRequeues(key), "error", err)
		l.queue.AddRateLimited(key)
	}
}

// IsNamespaceTerminating reports whether err says that nothing can be created
// in a namespace because it is being deleted. Trying again is pointless.
func IsNamespaceTerminating(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
