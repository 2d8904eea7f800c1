package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"weft.dev/weft/controlplane/upstream"
)

// Timing of leader election, upstream's defaults: when a leader dies, another
// server takes over within leaseDuration.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
	// againAfter is the wait before work that failed is tried again.
	againAfter = 5 * time.Second
)

// lease is the right to do one kind of work, held by one server at a time.
type lease struct {
	// name is that of the Lease in kube-system; the user system:NAME may hold it.
	name string
	// identity stays the same over restarts of this server, which so has its
	// lease back at once instead of waiting for it to expire.
	identity string
	loopback *rest.Config
	log      *slog.Logger
}

// lead does work whenever this server holds the lease, and gives the lease up
// only after work has returned. It returns when ctx is done.
func (l lease) lead(ctx context.Context, work func(context.Context) error) error {
	client, err := kubernetes.NewForConfig(upstream.AsUser(l.loopback, "system:"+l.name))
	if err != nil {
		return fmt.Errorf("make client of lease %s: %w", l.name, err)
	}
	for ctx.Err() == nil {
		if err := l.term(ctx, client, work); err != nil {
			l.log.Error("Work under a lease failed and starts again", "lease", l.name, "error", err, "after", againAfter)
			select {
			case <-ctx.Done():
			case <-time.After(againAfter):
			}
		}
	}
	return nil
}

// term waits for the lease, works until it is lost, work fails or ctx is done,
// and waits for work to end.
func (l lease) term(ctx context.Context, client kubernetes.Interface, work func(context.Context) error) error {
	// The election outlives ctx until the work has stopped.
	election, resign := context.WithCancel(context.WithoutCancel(ctx))
	defer resign()
	var working sync.WaitGroup
	var workErr error
	var started, ended bool
	var mu sync.Mutex

	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: l.name,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: l.name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: l.identity},
		},
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				mu.Lock()
				if ended || ctx.Err() != nil {
					mu.Unlock()
					resign()
					return
				}
				started = true
				working.Add(1)
				mu.Unlock()
				defer working.Done()
				defer resign()
				leading, stop := context.WithCancel(leading)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				l.log.Info("Leading", "lease", l.name)
				workErr = work(leading)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("prepare election for %s: %w", l.name, err)
	}
	defer context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if !started {
			resign()
		}
	})()
	elector.Run(election)
	mu.Lock()
	ended = true
	mu.Unlock()
	working.Wait()
	return workErr
}
