package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ending is how a Job ends. It stands in the status first as
// SuccessCriteriaMet or FailureTarget, and as Complete or Failed when every
// pod has ended and is counted.
type ending struct {
	succeeds        bool
	reason, message string
}

func (e ending) target() batchv1.JobConditionType {
	if e.succeeds {
		return batchv1.JobSuccessCriteriaMet
	}
	return batchv1.JobFailureTarget
}

func (e ending) final() batchv1.JobConditionType {
	if e.succeeds {
		return batchv1.JobComplete
	}
	return batchv1.JobFailed
}

// completed is the ending of a Job that did all it should.
var completed = ending{true, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods"}

// ends returns how the Job ends although there may be work left, nil if it
// goes on. What was decided before stands; then failures come before success.
func (s *survey) ends(now time.Time) *ending {
	for _, condition := range s.job.Status.Conditions {
		decided := ending{condition.Type == batchv1.JobSuccessCriteriaMet, condition.Reason, condition.Message}
		if condition.Status == corev1.ConditionTrue && condition.Type == decided.target() {
			return &decided
		}
	}
	for _, rule := range []func(time.Time) (reason, message string){
		s.failedByPolicy, s.failedTooOften, s.tookTooLong, s.failedByIndexes,
	} {
		if reason, message := rule(now); reason != "" {
			return &ending{false, reason, message}
		}
	}
	if isIndexed(s.job) {
		if message := matchSuccessPolicy(s.job.Spec.SuccessPolicy, s.completedIndexes, s.completions()); message != "" {
			return &ending{true, batchv1.JobReasonSuccessPolicy, message}
		}
	}
	return nil
}

func (s *survey) failedByPolicy(time.Time) (reason, message string) {
	if s.job.Spec.PodFailurePolicy == nil {
		return "", ""
	}
	for _, pod := range s.pods {
		if !isFailed(s.job, pod) {
			continue
		}
		if verdict := judge(s.job.Spec.PodFailurePolicy, pod); verdict.action == batchv1.PodFailurePolicyActionFailJob {
			return batchv1.JobReasonPodFailurePolicy, verdict.message
		}
	}
	return "", ""
}

func (s *survey) failedTooOften(time.Time) (reason, message string) {
	limit := int(*s.job.Spec.BackoffLimit)
	if s.failed > limit || s.restartedTooOften(limit) {
		return batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit"
	}
	return "", ""
}

// restartedTooOften counts restarts in place of failed pods where the node
// restarts containers itself.
func (s *survey) restartedTooOften(limit int) bool {
	if s.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	sum := 0
	for _, pod := range slices.Concat(s.active, s.terminating) {
		sum += int(restarts(pod))
	}
	return sum >= max(limit, 1)
}

func (s *survey) tookTooLong(now time.Time) (reason, message string) {
	if left, limited := s.timeLeft(now); limited && left <= 0 {
		return batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline"
	}
	return "", ""
}

// timeLeft is the time until the Job's deadline. A suspended Job has none.
func (s *survey) timeLeft(now time.Time) (left time.Duration, limited bool) {
	seconds, start := s.job.Spec.ActiveDeadlineSeconds, startOf(s.job, now)
	if seconds == nil || start == nil || isSuspended(s.job) {
		return 0, false
	}
	return start.Add(time.Duration(*seconds) * time.Second).Sub(now), true
}

// startOf is when the Job began to run, nil if it has not. One that resumes begins anew.
func startOf(job *batchv1.Job, now time.Time) *metav1.Time {
	if isSuspended(job) || job.Status.StartTime != nil && !isTrue(job.Status.Conditions, batchv1.JobSuspended) {
		return job.Status.StartTime
	}
	return &metav1.Time{Time: now}
}

func (s *survey) failedByIndexes(time.Time) (reason, message string) {
	failed, limit := s.failedIndexes.len(), s.job.Spec.MaxFailedIndexes
	switch {
	case limit != nil && failed > int(*limit):
		return batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes"
	case failed > 0 && failed+s.completedIndexes.len() >= s.completions():
		return batchv1.JobReasonFailedIndexes, "Job has failed indexes"
	}
	return "", ""
}

func isTrue(conditions []batchv1.JobCondition, kind batchv1.JobConditionType) bool {
	return slices.ContainsFunc(conditions, func(c batchv1.JobCondition) bool {
		return c.Type == kind && c.Status == corev1.ConditionTrue
	})
}

// isOver reports whether the Job has finished, one way or the other.
func isOver(job *batchv1.Job) bool {
	return isTrue(job.Status.Conditions, batchv1.JobComplete) || isTrue(job.Status.Conditions, batchv1.JobFailed)
}
