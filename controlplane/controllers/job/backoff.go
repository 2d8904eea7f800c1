package job

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A failed pod is replaced after 10 s; each further failure in a row doubles
// the wait.
const (
	firstDelay = 10 * time.Second
	lastDelay  = 10 * time.Minute
)

// backoff is what a Job remembers of failures since the last success. It
// holds pods that are gone, so it is more than the pods of the moment tell; what is lost
// with the process is rebuilt from those that are left. The zero value knows no failure.
type backoff struct {
	lastSuccess time.Time
	failures    map[types.UID]time.Time
}

// with returns b after the given pods have finished too. Pods that b knows
// make no difference.
func (b backoff) with(succeeded, failed []*corev1.Pod) backoff {
	next := backoff{lastSuccess: b.lastSuccess, failures: map[types.UID]time.Time{}}
	for _, pod := range succeeded {
		if at := finishedAt(pod); at.After(next.lastSuccess) {
			next.lastSuccess = at
		}
	}
	for _, pod := range failed {
		if _, known := b.failures[pod.UID]; !known {
			next.failures[pod.UID] = finishedAt(pod)
		}
	}
	maps.Copy(next.failures, b.failures)
	maps.DeleteFunc(next.failures, func(_ types.UID, at time.Time) bool { return !at.After(next.lastSuccess) })
	return next
}

// wait is how long no pod may be created; 0 if one may be now.
func (b backoff) wait(now time.Time) time.Duration {
	var last time.Time
	for _, at := range b.failures {
		if at.After(last) {
			last = at
		}
	}
	return remaining(len(b.failures), last, now)
}

// waitForIndex is the same for an index with a back-off limit of its own, of
// which last is the latest failed pod; nil if none has failed.
func waitForIndex(last *corev1.Pod, now time.Time) time.Duration {
	if last == nil {
		return 0
	}
	return remaining(failures(last)+ignoredFailures(last)+1, finishedAt(last), now)
}

func remaining(failures int, last, now time.Time) time.Duration {
	if failures == 0 {
		return 0
	}
	delay := firstDelay
	for i := 1; i < failures && delay < lastDelay; i++ {
		delay *= 2
	}
	return max(0, min(delay, lastDelay)-now.Sub(last))
}
