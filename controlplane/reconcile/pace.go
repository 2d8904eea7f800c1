package reconcile

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// How long a status that nobody waits for is held back: so many times what a
// write takes, within limits. With an idle API server that is too short to be
// noticed; the busier it is, the more changes share one write. Where only people
// look at the counts, both may be four times as much.
const (
	holdFactor   = 20
	shortestHold = 50 * time.Millisecond
	longestHold  = 500 * time.Millisecond
	patience     = 4
)

// pace says how long statuses that change often wait for others to share their
// write.
type pace struct {
	mu   sync.Mutex
	due  map[types.NamespacedName]time.Time
	took time.Duration // by a write, smoothed
}

// hold returns how long the status of key may still wait to be written, from
// the first time that it differs; 0 says that it must be written now.
func (p *pace) hold(key types.NamespacedName, now time.Time, isPatient bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	due, held := p.due[key]
	if !held {
		factor := time.Duration(1)
		if isPatient {
			factor = patience
		}
		due = now.Add(min(max(factor*holdFactor*p.took, shortestHold), factor*longestHold))
		if p.due == nil {
			p.due = map[types.NamespacedName]time.Time{}
		}
		p.due[key] = due
	}
	return max(due.Sub(now), 0)
}

// wrote records that key's status has been written, and how long that took.
func (p *pace) wrote(key types.NamespacedName, took time.Duration) {
	const weight = 8 // of what was measured before
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.due, key)
	p.took += (took - p.took) / weight
}

// forget drops key: it is gone, or there is nothing to write.
func (p *pace) forget(key types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.due, key)
}
