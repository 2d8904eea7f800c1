package job

import (
	"cmp"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"weft.dev/weft/controlplane/reconcile"
)

// survey is one Job and its pods, sorted by what the rules ask of them.
type survey struct {
	job *batchv1.Job
	// pods are all of the Job's, lowest index first.
	pods []*corev1.Pod
	// active and terminating have not ended. The latter were asked to.
	active, terminating []*corev1.Pod
	// succeeded and failed counts what the status has and what is not in it
	// yet. Failures that the policy ignores are left out.
	succeeded, failed int
	// completedIndexes and failedIndexes include what the status does not have
	// yet; both are empty unless the Job is indexed.
	completedIndexes, failedIndexes indexes
	// waiting has, for each index that is to be tried again, its latest failed
	// pod. It stays until there is a replacement, which inherits its count of failures.
	waiting map[int]*corev1.Pod
}

func look(job *batchv1.Job, pods []*corev1.Pod) *survey {
	s := &survey{job: job, pods: slices.Clone(pods)}
	slices.SortFunc(s.pods, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(indexOf(a), indexOf(b)), cmp.Compare(a.UID, b.UID))
	})
	for _, pod := range s.pods {
		switch {
		case reconcile.IsActive(pod):
			s.active = append(s.active, pod)
		case reconcile.IsTerminating(pod):
			s.terminating = append(s.terminating, pod)
		}
	}
	s.countFinished()
	if job.Spec.BackoffLimitPerIndex != nil {
		s.findWaiting()
	}
	return s
}

// countFinished adds up what the status says and the pods that it has not
// taken in yet. A pod stands in the status either by its UID in
// uncountedTerminatedPods, or, if it succeeded for an index, by that index.
func (s *survey) countFinished() {
	status, uncounted := s.job.Status, uncountedOf(s.job)
	s.succeeded = int(status.Succeeded) + len(uncounted.Succeeded)
	s.failed = int(status.Failed) + len(uncounted.Failed)
	if isIndexed(s.job) {
		s.completedIndexes = parseIndexes(status.CompletedIndexes, s.completions())
	}
	if status.FailedIndexes != nil {
		s.failedIndexes = parseIndexes(*status.FailedIndexes, s.completions())
	}
	known := sets.New(slices.Concat(uncounted.Succeeded, uncounted.Failed)...)
	var completed, failed []int
	for _, pod := range s.pods {
		if !isTracked(pod) || !hasPlace(s.job, pod) || known.Has(pod.UID) {
			continue
		}
		if pod.Status.Phase == corev1.PodSucceeded {
			s.succeeded++
			completed = append(completed, indexOf(pod))
		} else if isFailed(s.job, pod) {
			if verdict := judge(s.job.Spec.PodFailurePolicy, pod); verdict.action != batchv1.PodFailurePolicyActionIgnore {
				s.failed++
			}
			if failsIndex(s.job, pod) {
				failed = append(failed, indexOf(pod))
			}
		}
	}
	if !isIndexed(s.job) {
		return
	}
	// No index is both, and what the status says of it stays.
	s.completedIndexes = s.completedIndexes.union(without(s.failedIndexes, completed))
	s.failedIndexes = s.failedIndexes.union(without(s.completedIndexes, failed))
	s.succeeded = s.completedIndexes.len()
}

func without(known indexes, list []int) indexes {
	return indexSet(slices.DeleteFunc(list, known.has)...)
}

// failsIndex reports whether with this failed pod its index has failed for good.
func failsIndex(job *batchv1.Job, pod *corev1.Pod) bool {
	if job.Spec.BackoffLimitPerIndex == nil {
		return false
	}
	switch judge(job.Spec.PodFailurePolicy, pod).action {
	case batchv1.PodFailurePolicyActionFailIndex:
		return true
	case batchv1.PodFailurePolicyActionIgnore:
		return false
	}
	return failures(pod) >= int(*job.Spec.BackoffLimitPerIndex)
}

func (s *survey) findWaiting() {
	settled := s.completedIndexes.union(s.failedIndexes).union(indexesOf(s.active))
	s.waiting = map[int]*corev1.Pod{}
	for _, pod := range s.pods {
		i := indexOf(pod)
		if !isTracked(pod) || !hasPlace(s.job, pod) || !isFailed(s.job, pod) || settled.has(i) {
			continue
		}
		if last := s.waiting[i]; last == nil || isLater(pod, last) {
			s.waiting[i] = pod
		}
	}
}

// isLater reports whether pod was tried after last, for the same index.
func isLater(pod, last *corev1.Pod) bool {
	return failures(pod)+ignoredFailures(pod) >= failures(last)+ignoredFailures(last) &&
		!finishedAt(pod).Before(finishedAt(last))
}

// finished returns the pods that ended by themselves or whose loss counts.
// Left out are those that were taken away by the controller when there were too many or
// the Job was suspended: they lost their finalizer before they were asked to end.
func (s *survey) finished() (succeeded, failed []*corev1.Pod) {
	for _, pod := range s.pods {
		switch {
		case !hasPlace(s.job, pod) || !isTracked(pod) && pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodSucceeded:
			succeeded = append(succeeded, pod)
		case isFailed(s.job, pod):
			failed = append(failed, pod)
		}
	}
	return succeeded, failed
}

// reached reports whether nothing is left to do once no pod is active.
func (s *survey) reached() bool {
	if s.job.Spec.Completions == nil {
		return s.succeeded > 0
	}
	return s.succeeded >= s.completions()
}

// completions is 0 for a Job that does not say how many it wants.
func (s *survey) completions() int {
	if s.job.Spec.Completions == nil {
		return 0
	}
	return int(*s.job.Spec.Completions)
}

func indexesOf(pods []*corev1.Pod) indexes {
	var list []int
	for _, pod := range pods {
		if i := indexOf(pod); i != noIndex {
			list = append(list, i)
		}
	}
	return indexSet(list...)
}

// uncountedOf returns the pods that are safe in the status but not counted.
func uncountedOf(job *batchv1.Job) batchv1.UncountedTerminatedPods {
	if job.Status.UncountedTerminatedPods == nil {
		return batchv1.UncountedTerminatedPods{}
	}
	return *job.Status.UncountedTerminatedPods
}

// countReady leaves out the pods in except.
func countReady(pods []*corev1.Pod, except sets.Set[types.UID]) int32 {
	var n int32
	for _, pod := range pods {
		if reconcile.IsReady(pod) && !except.Has(pod.UID) {
			n++
		}
	}
	return n
}
