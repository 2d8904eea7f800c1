package daemonset

import (
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A pod that failed is replaced at once, the next on the same node after
// firstWait, and so on, twice as long each time up to longestWait. The waits
// start anew when the DaemonSet is edited, or when nothing has failed for
// twice longestWait.
const (
	firstWait   = time.Second
	longestWait = 15 * time.Minute
)

// backoff remembers when failed pods were replaced. It is lost with the
// process, which costs one early attempt per node. The zero value is ready for use.
type backoff struct {
	mu sync.Mutex
	of map[types.NamespacedName]*replacements
}

// replacements are those of one DaemonSet since it was last edited.
type replacements struct {
	uid        types.UID
	generation int64
	byNode     map[string]replacement
}

type replacement struct {
	at   time.Time
	wait time.Duration
}

// waits returns for how long, from now on, failed pods are not replaced yet,
// per node; nodes without a wait are left out.
func (b *backoff) waits(key types.NamespacedName, ds *appsv1.DaemonSet, now time.Time) map[string]time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	waits := map[string]time.Duration{}
	for node, r := range b.find(key, ds, now).byNode {
		if left := r.at.Add(r.wait).Sub(now); left > 0 {
			waits[node] = left
		}
	}
	return waits
}

// replaced records that a failed pod is replaced now.
func (b *backoff) replaced(key types.NamespacedName, ds *appsv1.DaemonSet, node string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := b.find(key, ds, now)
	wait := firstWait
	if last, ok := found.byNode[node]; ok {
		wait = min(2*last.wait, longestWait)
	}
	found.byNode[node] = replacement{now, wait}
	if b.of == nil {
		b.of = map[types.NamespacedName]*replacements{}
	}
	b.of[key] = found
}

// find returns what still counts for ds, dropping the rest.
func (b *backoff) find(key types.NamespacedName, ds *appsv1.DaemonSet, now time.Time) *replacements {
	found := b.of[key]
	if found == nil || found.uid != ds.UID || found.generation != ds.Generation {
		delete(b.of, key)
		return &replacements{ds.UID, ds.Generation, map[string]replacement{}}
	}
	for node, r := range found.byNode {
		if now.Sub(r.at) > 2*longestWait {
			delete(found.byNode, node)
		}
	}
	return found
}

// forget drops what is known of a DaemonSet that is gone.
func (b *backoff) forget(key types.NamespacedName) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.of, key)
}
