package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"weft.dev/weft/controlplane/reconcile"
)

// outcome is how much of a plan for pods came true.
type outcome struct {
	// discarded lost their finalizer, deleted were asked to end.
	discarded, deleted sets.Set[types.UID]
	created            int
}

// settlement is what a step writes last. Pods are counted so that a crash at
// any point neither loses nor doubles one (KEP-2307):
//
//  1. the status takes in the UIDs of pods that have ended (or, for an index
//     that succeeded, the index)
//  2. those pods lose their finalizer
//  3. a later step counts the UIDs whose pods have no finalizer any more, and
//     drops them
type settlement struct {
	Status batchv1.JobStatus
	// Release lose their finalizer once Status is stored.
	Release []*corev1.Pod
	// Urgent says that users wait for this status; else it may be combined
	// with the next.
	Urgent bool
}

// settle returns what is to be written after the outcome of p.
func settle(p plan, out outcome, now time.Time) settlement {
	status := *p.job.Status.DeepCopy()
	status.Active = int32(len(p.active) + out.created - out.deleted.Len())
	status.Ready = new(countReady(p.active, out.deleted))
	status.Terminating = new(int32(len(p.terminating) + out.deleted.Len()))
	status.StartTime = startOf(p.job, now)
	if p.Ending == nil && status.Active == 0 && p.reached() {
		p.Ending = &completed
	}
	counting := p.countDown(&status, out)
	release := p.countIn(&status, counting, out)
	p.conclude(&status, counting.Len() == 0, now)
	// A failed pod that is released because it has a replacement would have to
	// wait for the next one if that is taken away now.
	losesReplacement := p.Discard && len(release) > 0
	return settlement{status, release, losesReplacement || isUrgent(p.job, status)}
}

// countDown counts the pods in uncountedTerminatedPods that have lost their
// finalizer. It returns the pods that still have theirs.
func (p *plan) countDown(status *batchv1.JobStatus, out outcome) sets.Set[types.UID] {
	tracked := sets.New[types.UID]()
	for _, pod := range p.pods {
		if isTracked(pod) && !out.discarded.Has(pod.UID) {
			tracked.Insert(pod.UID)
		}
	}
	if status.UncountedTerminatedPods == nil {
		status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	isGone := func(uid types.UID) bool { return !tracked.Has(uid) }
	before := *status.UncountedTerminatedPods
	after := batchv1.UncountedTerminatedPods{
		Succeeded: slices.DeleteFunc(slices.Clone(before.Succeeded), isGone),
		Failed:    slices.DeleteFunc(slices.Clone(before.Failed), isGone),
	}
	status.UncountedTerminatedPods = &after
	status.Succeeded += int32(len(before.Succeeded) - len(after.Succeeded))
	status.Failed += int32(len(before.Failed) - len(after.Failed))
	return tracked
}

// countIn takes the pods that have ended into the status, and returns those
// that may lose their finalizer then.
func (p *plan) countIn(status *batchv1.JobStatus, tracked sets.Set[types.UID], out outcome) []*corev1.Pod {
	uncounted := status.UncountedTerminatedPods
	known := sets.New(slices.Concat(uncounted.Succeeded, uncounted.Failed)...)
	var release []*corev1.Pod
	for _, pod := range p.pods {
		ended := reconcile.IsFinished(pod) || pod.DeletionTimestamp != nil || out.deleted.Has(pod.UID)
		if !tracked.Has(pod.UID) || !p.release(pod, ended) {
			continue
		}
		if len(release) == burst {
			break
		}
		release = append(release, pod)
		switch {
		case known.Has(pod.UID) || !hasPlace(p.job, pod):
		case pod.Status.Phase == corev1.PodSucceeded:
			if !isIndexed(p.job) {
				uncounted.Succeeded = append(uncounted.Succeeded, pod.UID)
			}
		case p.countsAsFailed(pod):
			uncounted.Failed = append(uncounted.Failed, pod.UID)
		}
	}
	if isIndexed(p.job) {
		status.CompletedIndexes = p.completedIndexes.String()
		status.Succeeded = int32(p.completedIndexes.len())
	}
	if p.job.Spec.BackoffLimitPerIndex != nil {
		status.FailedIndexes = new(p.failedIndexes.String())
	}
	return release
}

// countsAsFailed also counts pods that were cut short by the Job's failure.
func (p *plan) countsAsFailed(pod *corev1.Pod) bool {
	cutShort := p.Ending != nil && !p.Ending.succeeds
	return (isFailed(p.job, pod) || cutShort) &&
		judge(p.job.Spec.PodFailurePolicy, pod).action != batchv1.PodFailurePolicyActionIgnore
}

// conclude brings the conditions up to date. allReleased says that no pod is
// left to count.
func (p *plan) conclude(status *batchv1.JobStatus, allReleased bool, now time.Time) {
	set := func(kind batchv1.JobConditionType, value corev1.ConditionStatus, reason, message string) {
		status.Conditions = withCondition(status.Conditions, kind, value, reason, message, now)
	}
	if !isSuspended(p.job) && isTrue(status.Conditions, batchv1.JobSuspended) {
		set(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed")
	}
	if p.Ending == nil {
		if isSuspended(p.job) && p.job.DeletionTimestamp == nil && !isTrue(status.Conditions, batchv1.JobSuspended) {
			set(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended")
			status.StartTime = nil
		}
		return
	}
	if target := p.Ending.target(); !isTrue(status.Conditions, target) {
		set(target, corev1.ConditionTrue, p.Ending.reason, p.Ending.message)
	}
	uncounted := len(status.UncountedTerminatedPods.Succeeded) + len(status.UncountedTerminatedPods.Failed)
	if !allReleased || uncounted > 0 || status.Active > 0 || *status.Terminating > 0 {
		return
	}
	set(p.Ending.final(), corev1.ConditionTrue, p.Ending.reason, p.Ending.message)
	if p.Ending.succeeds {
		status.CompletionTime = &metav1.Time{Time: now}
	}
	// A Job can end while it is suspended, and one that ended has begun. Only
	// one that had nothing to do may end without.
	if nothing := p.job.Spec.Completions != nil && *p.job.Spec.Completions == 0; status.StartTime == nil && !nothing {
		status.StartTime = &metav1.Time{Time: now}
	}
}

// withCondition returns the conditions with one added or replaced.
func withCondition(conditions []batchv1.JobCondition, kind batchv1.JobConditionType, value corev1.ConditionStatus, reason, message string, now time.Time) []batchv1.JobCondition {
	at := metav1.Time{Time: now}
	condition := batchv1.JobCondition{
		Type: kind, Status: value, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at,
	}
	result := slices.Clone(conditions)
	i := slices.IndexFunc(result, func(c batchv1.JobCondition) bool { return c.Type == kind })
	if i < 0 {
		return append(result, condition)
	}
	result[i] = condition
	return result
}

// isUrgent reports whether status is more than new numbers and, of a new Job,
// its start.
func isUrgent(job *batchv1.Job, status batchv1.JobStatus) bool {
	return job.DeletionTimestamp != nil || !slices.Equal(job.Status.Conditions, status.Conditions) ||
		!isNew(job) && !job.Status.StartTime.Equal(status.StartTime)
}

// isNew reports whether the Job never had a status from this controller.
func isNew(job *batchv1.Job) bool { return job.Status.Ready == nil }
