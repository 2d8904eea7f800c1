package job

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// isTracked reports whether the pod is still to be counted: until its outcome
// is safe in the Job's status, the finalizer keeps the pod in existence.
func isTracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

// isFailed reports whether the pod counts as failed. Unless only failed pods
// are to be replaced, one that is asked to end has failed at once.
func isFailed(job *batchv1.Job, pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodFailed {
		return true
	}
	return pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded && !replacesOnlyFailed(job)
}

// replacesOnlyFailed reports whether a terminating pod keeps its place until
// it has ended (KEP-3939).
func replacesOnlyFailed(job *batchv1.Job) bool {
	return job.Spec.PodReplacementPolicy != nil && *job.Spec.PodReplacementPolicy == batchv1.Failed
}

func isIndexed(job *batchv1.Job) bool {
	return job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion
}

func isSuspended(job *batchv1.Job) bool { return job.Spec.Suspend != nil && *job.Spec.Suspend }

// noIndex is the index of a pod that has none.
const noIndex = -1

// indexOf returns the pod's completion index, or noIndex.
func indexOf(pod *corev1.Pod) int {
	i, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 {
		return noIndex
	}
	return i
}

// hasPlace reports whether the pod counts for the Job: for an indexed Job it
// must have an index below completions.
func hasPlace(job *batchv1.Job, pod *corev1.Pod) bool {
	if !isIndexed(job) {
		return true
	}
	i := indexOf(pod)
	return i != noIndex && i < int(*job.Spec.Completions)
}

// failures and ignoredFailures are how often the pod's index had failed before
// this pod; a replacement inherits them (KEP-3850).
func failures(pod *corev1.Pod) int {
	return count(pod.Annotations[batchv1.JobIndexFailureCountAnnotation])
}

func ignoredFailures(pod *corev1.Pod) int {
	return count(pod.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation])
}

// count is 0 if text is not a number that fits.
func count(text string) int {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}

// finishedAt is when the last container ended; if that is not known, when the
// pod was last ready, was asked to end, or was created.
func finishedAt(pod *corev1.Pod) time.Time {
	if at := lastContainerEnd(pod); !at.IsZero() {
		return at
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
			return c.LastTransitionTime.Time
		}
	}
	if pod.DeletionTimestamp == nil {
		return pod.CreationTimestamp.Time
	}
	grace := int64(0)
	if pod.DeletionGracePeriodSeconds != nil {
		grace = *pod.DeletionGracePeriodSeconds
	}
	return pod.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
}

// lastContainerEnd looks at containers and sidecars, which end after them. It
// is zero unless all have ended.
func lastContainerEnd(pod *corev1.Pod) time.Time {
	isSidecar := map[string]bool{}
	for _, c := range pod.Spec.InitContainers {
		isSidecar[c.Name] = c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	ends := slices.Clone(pod.Status.ContainerStatuses)
	for _, status := range pod.Status.InitContainerStatuses {
		if isSidecar[status.Name] {
			ends = append(ends, status)
		}
	}
	var last time.Time
	for _, status := range ends {
		if status.State.Terminated == nil || status.State.Terminated.FinishedAt.IsZero() {
			return time.Time{}
		}
		if at := status.State.Terminated.FinishedAt.Time; at.After(last) {
			last = at
		}
	}
	return last
}

// restarts adds up the restarts of all containers.
func restarts(pod *corev1.Pod) int32 {
	var n int32
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		n += status.RestartCount
	}
	return n
}

// byProgress orders active pods by what their loss costs, least first: without
// a node, pending, not ready, ready for a shorter time, restarted more often, younger.
// Of equals the lowest index goes first, as with upstream.
func byProgress(a, b *corev1.Pod) int {
	aSince, aReady := reconcile.ReadySince(a)
	bSince, bReady := reconcile.ReadySince(b)
	order := cmp.Or(
		cmp.Compare(toInt(a.Spec.NodeName != ""), toInt(b.Spec.NodeName != "")),
		cmp.Compare(toInt(a.Status.Phase == corev1.PodRunning), toInt(b.Status.Phase == corev1.PodRunning)),
		cmp.Compare(toInt(aReady), toInt(bReady)),
	)
	if order == 0 && aReady {
		order = bSince.Compare(aSince)
	}
	return cmp.Or(order,
		cmp.Compare(restarts(b), restarts(a)),
		b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
		cmp.Compare(indexOf(a), indexOf(b)),
		cmp.Compare(a.UID, b.UID),
	)
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
