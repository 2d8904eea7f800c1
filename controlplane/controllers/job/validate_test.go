package job

import (
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// validate returns what the API server has against a status of job; a status
// that it refuses would leave the Job as it is for ever. The rules are those
// of ValidateJobStatusUpdate (k8s.io/kubernetes/pkg/apis/batch/validation), said in our own words.
func validate(job *batchv1.Job, status batchv1.JobStatus) []string {
	var faults []string
	refuse := func(is bool, fault string) {
		if is {
			faults = append(faults, fault)
		}
	}
	old, is := job.Status, func(kind batchv1.JobConditionType) bool { return isTrue(status.Conditions, kind) }
	was := func(kind batchv1.JobConditionType) bool { return isTrue(old.Conditions, kind) }
	completions := 0
	if job.Spec.Completions != nil {
		completions = int(*job.Spec.Completions)
	}
	isElastic := isIndexed(job) && *job.Spec.Completions == *job.Spec.Parallelism

	uids := slices.Concat(status.UncountedTerminatedPods.Succeeded, status.UncountedTerminatedPods.Failed)
	refuse(sets.New(uids...).Len() != len(uids), "a pod is uncounted twice")
	refuse(min(status.Active, status.Succeeded, status.Failed, *status.Ready, *status.Terminating) < 0, "a number below 0")
	refuse(*status.Ready > status.Active, "more pods ready than active")
	refuse(status.Failed < old.Failed, "failed decreases")
	refuse(status.Succeeded < old.Succeeded && !isElastic, "succeeded decreases")
	refuse(status.CompletedIndexes != "" && !isIndexed(job), "completedIndexes of a Job without indexes")
	refuse((status.FailedIndexes != nil) != (job.Spec.BackoffLimitPerIndex != nil), "failedIndexes without backoffLimitPerIndex, or the reverse")
	if status.FailedIndexes != nil {
		refuse(parseIndexes(status.CompletedIndexes, completions).common(parseIndexes(*status.FailedIndexes, completions)) > 0, "an index has both failed and succeeded")
	}

	succeeds, fails := is(batchv1.JobSuccessCriteriaMet), is(batchv1.JobFailureTarget)
	isComplete, hasFailed := is(batchv1.JobComplete), is(batchv1.JobFailed)
	refuse(succeeds && fails, "both succeeds and fails")
	refuse(isComplete && !succeeds, "Complete without SuccessCriteriaMet")
	refuse(hasFailed && !fails, "Failed without FailureTarget")
	refuse(isComplete != (status.CompletionTime != nil), "Complete without completionTime, or the reverse")
	for _, kind := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget, batchv1.JobComplete, batchv1.JobFailed} {
		refuse(was(kind) && !is(kind), string(kind)+" is taken back")
	}
	if isComplete || hasFailed {
		refuse(status.Active > 0, "finished with active pods")
		refuse(*status.Terminating > 0, "finished with terminating pods")
		refuse(len(uids) > 0, "finished with uncounted pods")
		nothingToDo := isSuspended(job) && job.Spec.Completions != nil && completions == 0
		refuse(status.StartTime == nil && !nothingToDo, "finished but never started")
	}
	resumes := was(batchv1.JobSuspended) && slices.ContainsFunc(status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobSuspended && c.Status == corev1.ConditionFalse
	})
	refuse(old.StartTime != nil && !old.StartTime.Equal(status.StartTime) && !isSuspended(job) && !resumes, "startTime changes")
	return faults
}
