package certs

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// lockDuration is how long a lock outlives a holder that died.
	lockDuration = 30 * time.Second
	// lockRenewal leaves two failed renewals before the lock is lost.
	lockRenewal = lockDuration / 3
	// lockPoll is how often a waiting replica looks whether a lock is free.
	lockPoll = 250 * time.Millisecond
)

// locker implements certmagic.Locker with Leases: who creates it has the
// lock, and deletes it afterwards. A Lease that nobody renews can be taken.
type locker struct {
	client    kubernetes.Interface
	namespace string
	node      string

	mu   sync.Mutex
	held map[string]*heldLock
}

type heldLock struct {
	lease *coordinationv1.Lease
	stop  context.CancelFunc
	done  chan struct{}
}

func newLocker(client kubernetes.Interface, namespace, node string) *locker {
	return &locker{client: client, namespace: namespace, node: node, held: map[string]*heldLock{}}
}

// Lock implements certmagic.Locker.
func (l *locker) Lock(ctx context.Context, name string) error {
	holder := l.node + "_" + rand.Text()
	var seen observation
	for {
		lease, err := l.tryLock(ctx, name, holder, &seen)
		if err != nil {
			return fmt.Errorf("lock %s: %w", name, err)
		}
		if lease != nil {
			l.keep(name, lease)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// observation is when this process first saw a Lease as it is. Clocks of
// other nodes are not compared with ours.
type observation struct {
	holder string
	renew  time.Time
	since  time.Time
}

// tryLock returns the Lease if it is ours now, nil if another one holds it.
func (l *locker) tryLock(ctx context.Context, name, holder string, seen *observation) (*coordinationv1.Lease, error) {
	leases := l.client.CoordinationV1().Leases(l.namespace)
	want := l.lease(name, holder)
	lease, err := leases.Create(ctx, want, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return lease, err
	}
	lease, err = leases.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !seen.isStale(lease, time.Now()) {
		return nil, nil
	}
	lease = lease.DeepCopy()
	lease.Spec = want.Spec
	lease, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	return lease, err
}

func (o *observation) isStale(lease *coordinationv1.Lease, now time.Time) bool {
	current := observation{since: now}
	if lease.Spec.HolderIdentity != nil {
		current.holder = *lease.Spec.HolderIdentity
	}
	if lease.Spec.RenewTime != nil {
		current.renew = lease.Spec.RenewTime.Time
	}
	if o.since.IsZero() || o.holder != current.holder || !o.renew.Equal(current.renew) {
		*o = current
	}
	return now.Sub(o.since) >= lockDuration
}

func (l *locker) lease(name, holder string) *coordinationv1.Lease {
	now := metav1.NowMicro()
	seconds := int32(lockDuration.Seconds())
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: objectName("certificate-lock", name)},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now,
		},
	}
}

// keep renews the lock until Unlock.
func (l *locker) keep(name string, lease *coordinationv1.Lease) {
	ctx, stop := context.WithCancel(context.Background())
	h := &heldLock{lease: lease, stop: stop, done: make(chan struct{})}
	l.mu.Lock()
	l.held[name] = h
	l.mu.Unlock()
	go func() {
		defer close(h.done)
		tick := time.NewTicker(lockRenewal)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				h.renew(ctx, l)
			}
		}
	}()
}

// renew writes the time. A failure is tried again at the next tick; a
// conflict means that the lock was lost, which certmagic allows for.
func (h *heldLock) renew(ctx context.Context, l *locker) {
	next := h.lease.DeepCopy()
	now := metav1.NowMicro()
	next.Spec.RenewTime = &now
	if updated, err := l.client.CoordinationV1().Leases(l.namespace).Update(ctx, next, metav1.UpdateOptions{}); err == nil {
		h.lease = updated
	}
}

// Unlock implements certmagic.Locker.
func (l *locker) Unlock(ctx context.Context, name string) error {
	l.mu.Lock()
	h := l.held[name]
	delete(l.held, name)
	l.mu.Unlock()
	if h == nil {
		return fmt.Errorf("unlock %s: it is not locked", name)
	}
	h.stop()
	<-h.done
	ours := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &h.lease.UID, ResourceVersion: &h.lease.ResourceVersion}}
	err := l.client.CoordinationV1().Leases(l.namespace).Delete(ctx, h.lease.Name, ours)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
