package job

import (
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// jobOf wants n completions, parallelism at a time.
func jobOf(n, parallelism int32, options ...func(*batchv1.Job)) *batchv1.Job {
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "work", UID: "work-uid", Generation: 1},
		Spec: batchv1.JobSpec{
			Completions:  &n,
			Parallelism:  &parallelism,
			BackoffLimit: new(int32(6)),
			Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"job": "work"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"job": "work"}},
				Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever,
					Containers:    []corev1.Container{{Name: "c", Image: "i"}},
				},
			},
		},
	}
	for _, o := range options {
		o(job)
	}
	return job
}

func indexed(job *batchv1.Job) { job.Spec.CompletionMode = new(batchv1.IndexedCompletion) }

func suspended(job *batchv1.Job) { job.Spec.Suspend = new(true) }

func workQueue(job *batchv1.Job) { job.Spec.Completions = nil }

func onlyFailedReplaced(job *batchv1.Job) { job.Spec.PodReplacementPolicy = new(batchv1.Failed) }

func limit(n int32) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Spec.BackoffLimit = &n }
}

// limitPerIndex is for indexed Jobs.
func limitPerIndex(n int32) func(*batchv1.Job) {
	return func(job *batchv1.Job) {
		indexed(job)
		limit(1 << 30)(job)
		job.Spec.BackoffLimitPerIndex = &n
	}
}

func deadline(seconds int64) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Spec.ActiveDeadlineSeconds = &seconds }
}

func started(ago time.Duration) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Status.StartTime = &metav1.Time{Time: now.Add(-ago)} }
}

func counted(succeeded, failed int32) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Status.Succeeded, job.Status.Failed = succeeded, failed }
}

func completedIndexes(text string) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Status.CompletedIndexes = text }
}

func failedIndexes(text string) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Status.FailedIndexes = &text }
}

func uncounted(succeeded, failed []types.UID) func(*batchv1.Job) {
	return func(job *batchv1.Job) {
		job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{Succeeded: succeeded, Failed: failed}
	}
}

func condition(kind batchv1.JobConditionType, reason string) func(*batchv1.Job) {
	return func(job *batchv1.Job) {
		job.Status.Conditions = withCondition(job.Status.Conditions, kind, corev1.ConditionTrue, reason, "as decided before", now)
	}
}

func isDeleted(job *batchv1.Job) { job.DeletionTimestamp = &metav1.Time{Time: now} }

func onFailure(rules ...batchv1.PodFailurePolicyRule) func(*batchv1.Job) {
	return func(job *batchv1.Job) { job.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: rules} }
}

// exitCodes is a rule for pods of which a container exits with one of codes.
func exitCodes(action batchv1.PodFailurePolicyAction, codes ...int32) batchv1.PodFailurePolicyRule {
	return batchv1.PodFailurePolicyRule{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
		Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: codes,
	}}
}

// podOption changes a pod of a test.
type podOption func(*corev1.Pod)

// pod is running, tracked and an hour old, unless options say otherwise.
func pod(name string, options ...podOption) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID(name),
			Labels:            map[string]string{"job": "work"},
			Finalizers:        []string{batchv1.JobTrackingFinalizer},
			CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
		},
		Spec:   corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, o := range options {
		o(p)
	}
	return p
}

// exited ends the pod's container.
func exited(code int32, at time.Time) podOption {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodSucceeded
		if code != 0 {
			p.Status.Phase = corev1.PodFailed
		}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.NewTime(at)},
		}}}
	}
}

func succeeded(p *corev1.Pod) { exited(0, now.Add(-time.Minute))(p) }

// failed ended too long ago for any back-off.
func failed(p *corev1.Pod) { exited(1, now.Add(-30*time.Minute))(p) }

func failedAgo(ago time.Duration) podOption { return exited(1, now.Add(-ago)) }

func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} }

func pending(p *corev1.Pod) { p.Status.Phase, p.Spec.NodeName = corev1.PodPending, "" }

func untracked(p *corev1.Pod) { p.Finalizers = nil }

func ready(p *corev1.Pod) {
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Minute)),
	})
}

func disrupted(p *corev1.Pod) {
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
}

func restarted(n int32) podOption {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", RestartCount: n}}
	}
}

func atIndex(i int) podOption { return annotated(batchv1.JobCompletionIndexAnnotation, i) }

func afterFailures(n int) podOption { return annotated(batchv1.JobIndexFailureCountAnnotation, n) }

func afterIgnored(n int) podOption {
	return annotated(batchv1.JobIndexIgnoredFailureCountAnnotation, n)
}

func annotated(key string, n int) podOption {
	return func(p *corev1.Pod) { p.Annotations = with(p.Annotations, key, strconv.Itoa(n)) }
}
