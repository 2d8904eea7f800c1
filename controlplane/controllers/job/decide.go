package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// burst is how many pods one step creates, takes away or counts at most. It
// also bounds the list of UIDs in the status to some 20 KB.
const burst = 500

// plan is what one step does to a Job's pods. At most one of Delete and Create
// is set. What the status says afterwards is for settle.
type plan struct {
	*survey
	// Ending is nil while the Job goes on.
	Ending *ending
	// Delete are pods to end. If Discard is set they are not to be counted, so they lose
	// their finalizer before they are asked to end.
	Delete  []*corev1.Pod
	Discard bool
	Create  []newPod
	// Backoff is what to remember of failures.
	Backoff backoff
	// Again is when time alone changes the decision; 0 if it will not.
	Again time.Duration
}

// newPod is a pod to create. Without an index the rest is unused.
type newPod struct {
	index int
	// failures of the pods before it, and those of them that the policy ignored.
	failures, ignored int
}

// decide compares job with its pods. known is the Backoff of the last plan.
func decide(job *batchv1.Job, pods []*corev1.Pod, known backoff, now time.Time) plan {
	p := plan{survey: look(job, pods)}
	p.Backoff = known.with(p.finished())
	p.Ending = p.ends(now)
	switch {
	case p.Ending != nil:
		p.Delete = p.active
		return p
	case job.DeletionTimestamp == nil:
		p.balance(now)
	}
	if left, limited := p.timeLeft(now); limited {
		p.again(left)
	}
	return p
}

func (p *plan) again(after time.Duration) {
	if p.Again == 0 || after < p.Again {
		p.Again = after
	}
}

// balance brings the number of active pods to what the spec asks for. Taking
// away comes first: what replaces a pod follows when the status knows of it.
func (p *plan) balance(now time.Time) {
	want := p.wanted()
	if p.Delete = p.surplus(want); len(p.Delete) > 0 {
		p.Discard = true
		return
	}
	missing := want - len(p.active)
	if replacesOnlyFailed(p.job) {
		missing -= len(p.terminating)
	}
	if missing = min(missing, burst); missing > 0 {
		p.add(missing, now)
	}
}

// wanted is how many pods shall be active.
func (p *plan) wanted() int {
	parallelism := int(*p.job.Spec.Parallelism)
	switch {
	case isSuspended(p.job):
		return 0
	case p.job.Spec.Completions != nil:
		return max(0, min(parallelism, p.completions()-p.succeeded))
	case p.succeeded > 0: // the work queue is empty: let the rest end, start none
		return len(p.active)
	}
	return parallelism
}

// surplus returns pods that are to go: those that cannot be counted, those
// whose index is taken or does not exist, and then what is more than want, least progress first.
func (p *plan) surplus(want int) []*corev1.Pod {
	var useless, useful []*corev1.Pod
	holder := map[int]*corev1.Pod{}
	for _, pod := range p.active {
		i := indexOf(pod)
		switch other := holder[i]; {
		case !isTracked(pod), !hasPlace(p.job, pod):
			useless = append(useless, pod)
		case !isIndexed(p.job):
			useful = append(useful, pod)
		case other == nil:
			holder[i] = pod
		case byProgress(other, pod) < 0:
			useless, holder[i] = append(useless, other), pod
		default:
			useless = append(useless, pod)
		}
	}
	for _, pod := range holder {
		useful = append(useful, pod)
	}
	if isSuspended(p.job) {
		return append(useless, useful...)
	}
	slices.SortFunc(useful, byProgress)
	all := append(useless, useful...)
	return all[:min(burst, max(len(useless), len(all)-want))]
}

// add plans up to n new pods, as far as no failure holds them back.
func (p *plan) add(n int, now time.Time) {
	if p.job.Spec.BackoffLimitPerIndex == nil {
		if wait := p.Backoff.wait(now); wait > 0 {
			p.again(wait)
			return
		}
	}
	if !isIndexed(p.job) {
		p.Create = slices.Repeat([]newPod{{index: noIndex}}, n)
		return
	}
	for _, i := range p.pendingIndexes(n) {
		last := p.waiting[i]
		if wait := waitForIndex(last, now); wait > 0 {
			p.again(wait)
			continue
		}
		p.Create = append(p.Create, replacementOf(p.job, i, last))
	}
}

// pendingIndexes returns the n lowest indexes that have neither ended nor a pod.
func (p *plan) pendingIndexes(n int) []int {
	taken := p.completedIndexes.union(p.failedIndexes).union(indexesOf(p.active))
	if replacesOnlyFailed(p.job) {
		taken = taken.union(indexesOf(p.terminating))
	}
	return taken.gaps(n, p.completions())
}

// replacementOf returns the next pod of an index, of which last has failed.
func replacementOf(job *batchv1.Job, index int, last *corev1.Pod) newPod {
	next := newPod{index: index}
	if last == nil {
		return next
	}
	next.failures, next.ignored = failures(last), ignoredFailures(last)
	if judge(job.Spec.PodFailurePolicy, last).action == batchv1.PodFailurePolicyActionIgnore {
		next.ignored++
	} else {
		next.failures++
	}
	return next
}

// release reports whether the pod's finalizer may go once the status holds
// what the pod is worth. ended says that the pod has ended or was asked to.
func (p *plan) release(pod *corev1.Pod, ended bool) bool {
	switch {
	case p.job.DeletionTimestamp != nil:
		return true
	case p.Ending != nil:
		return ended
	case reconcile.IsFinished(pod) || isFailed(p.job, pod):
		return pod.Status.Phase == corev1.PodSucceeded || p.waiting[indexOf(pod)] != pod
	}
	return false
}
