package certs

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
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

// Keys of a lock's ConfigMap. Time is RFC 3339 in the holder's clock.
const (
	lockHolder  = "holder"
	lockRenewed = "renewed"
)

// locker implements certmagic.Locker with ConfigMaps: who creates one has the
// lock, and deletes it afterwards. One that nobody renews can be taken. They
// are not Leases because a node may write only the Lease of its own name
// (NodeRestriction, admitLease).
type locker struct {
	client    kubernetes.Interface
	namespace string
	node      string

	mu   sync.Mutex
	held map[string]*heldLock
}

type heldLock struct {
	object *corev1.ConfigMap
	stop   context.CancelFunc
	done   chan struct{}
}

func newLocker(client kubernetes.Interface, namespace, node string) *locker {
	return &locker{client: client, namespace: namespace, node: node, held: map[string]*heldLock{}}
}

// Lock implements certmagic.Locker.
func (l *locker) Lock(ctx context.Context, name string) error {
	holder := l.node + "_" + rand.Text()
	var seen observation
	for {
		lock, err := l.tryLock(ctx, name, holder, &seen)
		if err != nil {
			return fmt.Errorf("lock %s: %w", name, err)
		}
		if lock != nil {
			l.keep(name, lock)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// observation is since when this process has seen a lock as it is. Clocks of
// other nodes are not compared with ours.
type observation struct {
	holder, renewed string
	since           time.Time
}

// tryLock returns the lock if it is ours now, nil if another one holds it.
func (l *locker) tryLock(ctx context.Context, name, holder string, seen *observation) (*corev1.ConfigMap, error) {
	locks := l.client.CoreV1().ConfigMaps(l.namespace)
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: objectName("certificate-lock", name)},
		Data:       map[string]string{lockHolder: holder, lockRenewed: timeText()},
	}
	lock, err := locks.Create(ctx, want, metav1.CreateOptions{})
	if err == nil {
		return lock, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	lock, err = locks.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !seen.isStale(lock, time.Now()) {
		return nil, nil
	}
	lock = lock.DeepCopy()
	lock.Data = want.Data
	lock, err = locks.Update(ctx, lock, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return lock, nil
}

func (o *observation) isStale(lock *corev1.ConfigMap, now time.Time) bool {
	holder, renewed := lock.Data[lockHolder], lock.Data[lockRenewed]
	if o.since.IsZero() || o.holder != holder || o.renewed != renewed {
		*o = observation{holder: holder, renewed: renewed, since: now}
	}
	return now.Sub(o.since) >= lockDuration
}

func timeText() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// keep renews the lock until Unlock.
func (l *locker) keep(name string, lock *corev1.ConfigMap) {
	ctx, stop := context.WithCancel(context.Background())
	h := &heldLock{object: lock, stop: stop, done: make(chan struct{})}
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
	next := h.object.DeepCopy()
	next.Data[lockRenewed] = timeText()
	if updated, err := l.client.CoreV1().ConfigMaps(l.namespace).Update(ctx, next, metav1.UpdateOptions{}); err == nil {
		h.object = updated
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
	asSeen := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &h.object.UID, ResourceVersion: &h.object.ResourceVersion}}
	err := l.client.CoreV1().ConfigMaps(l.namespace).Delete(ctx, h.object.Name, asSeen)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
