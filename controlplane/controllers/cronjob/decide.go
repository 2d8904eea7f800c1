package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// manyMissed is how many missed runs are taken for a sign that something
	// is wrong, for example a clock.
	manyMissed = 100
	// longestWait bounds how long a clock that was set forward, or a machine
	// that slept, goes unnoticed: timers do not follow either.
	longestWait = time.Minute
	// longestDeadline is what a time.Duration holds, in seconds.
	longestDeadline = int64(math.MaxInt64 / time.Second)
)

// plan is what one step does for one CronJob.
type plan struct {
	// Delete are finished Jobs beyond the history limits.
	Delete []*batchv1.Job
	// Replace are Jobs that must be deleted before Start is created.
	Replace []*batchv1.Job
	// Start is the Job to create, nil if none is due, for the run at Run.
	Start *batchv1.Job
	Run   time.Time
	// Status is what is known before Replace and Start.
	Status batchv1.CronJobStatus
	// Notices hold for as long as the situation they describe.
	Notices []notice
	// Again is when to look again though nothing changes; 0 is never.
	Again time.Duration
}

// recordsFirst reports whether the step must do no more than write the status.
// A Job that is deleted before its run is recorded could be created again.
func (p plan) recordsFirst(have batchv1.CronJobStatus) bool {
	return len(p.Delete)+len(p.Replace) > 0 && !equality.Semantic.DeepEqual(p.Status, have)
}

// notice is what a user is told once about one situation.
type notice struct {
	Type, Reason, Message string
	// Run tells situations apart that read the same, in Unix seconds; else 0.
	Run int64
}

func (p *plan) tell(eventType, reason, format string, args ...any) {
	p.Notices = append(p.Notices, notice{Type: eventType, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// decide compares a CronJob with the Jobs it controls. All that its status
// calls active and that exist must be among jobs. Runs before notBefore are of
// no interest. The location of now is that of schedules without a time zone.
func decide(cj *batchv1.CronJob, jobs []*batchv1.Job, notBefore, now time.Time) plan {
	p := plan{Status: *cj.Status.DeepCopy()}
	p.observe(cj, jobs)
	if cj.DeletionTimestamp != nil {
		return p
	}
	p.Delete = slices.Concat(
		surplus(jobs, batchv1.JobComplete, cj.Spec.SuccessfulJobsHistoryLimit),
		surplus(jobs, batchv1.JobFailed, cj.Spec.FailedJobsHistoryLimit),
	)
	p.schedule(cj, jobs, notBefore, now)
	return p
}

// --- Status ---

// observe brings the status up to date with the Jobs.
func (p *plan) observe(cj *batchv1.CronJob, jobs []*batchv1.Job) {
	byUID := map[types.UID]*batchv1.Job{}
	for _, job := range jobs {
		byUID[job.UID] = job
	}
	p.Status.Active = slices.DeleteFunc(p.Status.Active, func(ref corev1.ObjectReference) bool {
		job := byUID[ref.UID]
		if job == nil {
			p.tell(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", ref.Name)
			return true
		}
		end := finished(job)
		if end != "" {
			p.tell(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", job.Name, end)
		}
		return end != ""
	})
	for _, job := range slices.SortedFunc(slices.Values(jobs), byStart) {
		p.observeJob(cj, job)
	}
}

func (p *plan) observeJob(cj *batchv1.CronJob, job *batchv1.Job) {
	end := finished(job)
	if done := job.Status.CompletionTime; end == batchv1.JobComplete && done != nil {
		if p.Status.LastSuccessfulTime == nil || done.After(p.Status.LastSuccessfulTime.Time) {
			p.Status.LastSuccessfulTime = done.DeepCopy()
		}
	}
	run, scheduled := runOf(cj, job)
	switch last := cj.Status.LastScheduleTime; {
	case scheduled && (last == nil || run.After(last.Time)):
		// Created, but whoever did so ended before it wrote the status.
		p.Status = withStarted(p.Status, job, run)
	case end == "" && !scheduled && job.DeletionTimestamp == nil && !isActive(p.Status, job.UID):
		p.tell(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", job.Name)
	}
}

// withStarted returns status after job was created for run.
func withStarted(status batchv1.CronJobStatus, job *batchv1.Job, run time.Time) batchv1.CronJobStatus {
	if finished(job) == "" && !isActive(status, job.UID) {
		status.Active = append(slices.Clip(status.Active), corev1.ObjectReference{
			APIVersion:      jobKind.GroupVersion().String(),
			Kind:            jobKind.Kind,
			Namespace:       job.Namespace,
			Name:            job.Name,
			UID:             job.UID,
			ResourceVersion: job.ResourceVersion,
		})
	}
	if status.LastScheduleTime == nil || run.After(status.LastScheduleTime.Time) {
		status.LastScheduleTime = &metav1.Time{Time: run}
	}
	return status
}

// withReplaced returns status after jobs were deleted to make room.
func withReplaced(status batchv1.CronJobStatus, jobs []*batchv1.Job) batchv1.CronJobStatus {
	var kept []corev1.ObjectReference
	for _, ref := range status.Active {
		if !slices.ContainsFunc(jobs, func(job *batchv1.Job) bool { return job.UID == ref.UID }) {
			kept = append(kept, ref)
		}
	}
	status.Active = kept
	return status
}

func isActive(status batchv1.CronJobStatus, uid types.UID) bool {
	return slices.ContainsFunc(status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == uid })
}

// finished returns JobComplete or JobFailed, or "" for a Job that has not ended.
func finished(job *batchv1.Job) batchv1.JobConditionType {
	for _, c := range job.Status.Conditions {
		if c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
			return c.Type
		}
	}
	return ""
}

// --- History ---

// surplus returns the oldest Jobs that ended in the given way beyond limit;
// nil is no limit.
func surplus(jobs []*batchv1.Job, end batchv1.JobConditionType, limit *int32) []*batchv1.Job {
	if limit == nil {
		return nil
	}
	var ended []*batchv1.Job
	for _, job := range jobs {
		if finished(job) == end && job.DeletionTimestamp == nil {
			ended = append(ended, job)
		}
	}
	slices.SortFunc(ended, byStart)
	return ended[:max(0, len(ended)-int(*limit))]
}

// byStart orders Jobs by when they started, those that have not started last.
func byStart(a, b *batchv1.Job) int {
	started, other := a.Status.StartTime, b.Status.StartTime
	switch {
	case started != nil && other != nil:
		return cmp.Or(started.Compare(other.Time), cmp.Compare(a.Name, b.Name))
	case started != nil:
		return -1
	case other != nil:
		return 1
	}
	return cmp.Compare(a.Name, b.Name)
}

// --- Schedule ---

// schedule decides whether a run is due, and whether it may start.
func (p *plan) schedule(cj *batchv1.CronJob, jobs []*batchv1.Job, notBefore, now time.Time) {
	zone, err := time.LoadLocation(zoneName(cj))
	if err != nil {
		p.tell(corev1.EventTypeWarning, "UnknownTimeZone", "invalid timeZone: %q: %s", zoneName(cj), err)
		return
	}
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return
	}
	if namesZone(cj.Spec.Schedule) {
		p.tell(corev1.EventTypeWarning, "UnsupportedSchedule", "CRON_TZ or TZ used in schedule %q is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details", cj.Spec.Schedule)
	}
	parsed, err := parse(&cj.Spec, now.Location())
	if err != nil {
		p.tell(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
		return
	}
	all, err := newRuns(parsed, base(cj.CreationTimestamp.Time, p.Status.LastScheduleTime, notBefore))
	if err != nil {
		p.tell(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %s", cj.Spec.Schedule, err)
		return
	}
	if next := all.next(now); !next.IsZero() {
		p.Again = min(next.Sub(now), longestWait)
	}
	p.start(cj, jobs, all, zone, now)
}

// start fills in the Job of the latest run that was not started yet, if it
// may start. Runs missed before it are lost.
func (p *plan) start(cj *batchv1.CronJob, jobs []*batchv1.Job, all runs, zone *time.Location, now time.Time) {
	p.Run = all.last(now)
	if p.Run.IsZero() {
		return
	}
	since := all.base
	if cj.Spec.StartingDeadlineSeconds != nil {
		deadline := time.Duration(min(*cj.Spec.StartingDeadlineSeconds, longestDeadline)) * time.Second
		if now.Sub(p.Run) > deadline {
			p.tell(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", p.Run.UTC().Format(time.RFC1123Z))
			return
		}
		if open := now.Add(-deadline); open.After(since) {
			since = open
		}
	}
	if all.areMoreThan(manyMissed, since, now) {
		p.tell(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if len(p.Status.Active) > 0 && cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent {
		p.Notices = append(p.Notices, notice{
			Type:    corev1.EventTypeNormal,
			Reason:  "JobAlreadyActive",
			Message: "Not starting job because prior execution is running and concurrency policy is Forbid",
			Run:     p.Run.Unix(),
		})
		return
	}
	if cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent {
		for _, job := range jobs {
			if isActive(p.Status, job.UID) {
				p.Replace = append(p.Replace, job)
			}
		}
	}
	p.Start = newJob(cj, p.Run, zone)
}

// base returns the moment after which runs count: the last one that was
// started, else the creation of the CronJob; and not what a schedule would have
// meant before it was written.
func base(created time.Time, last *metav1.Time, notBefore time.Time) time.Time {
	after := created
	if last != nil {
		after = last.Time
	}
	if notBefore.After(after) {
		after = notBefore
	}
	return after
}

// zoneName returns the name of the time zone, "" (which is UTC) for none.
func zoneName(cj *batchv1.CronJob) string {
	if cj.Spec.TimeZone == nil {
		return ""
	}
	return *cj.Spec.TimeZone
}

// --- Jobs ---

// jobName is the same for everyone who starts the run, so that it starts once.
func jobName(cj *batchv1.CronJob, run time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, run.Unix()/60)
}

func newJob(cj *batchv1.CronJob, run time.Time, zone *time.Location) *batchv1.Job {
	template := cj.Spec.JobTemplate.DeepCopy()
	annotations := maps.Clone(template.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = run.In(zone).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       cj.Namespace,
			Name:            jobName(cj, run),
			Labels:          template.Labels,
			Annotations:     annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, kind)},
		},
		Spec: template.Spec,
	}
}

// runOf returns the run that job was created for, if it was created by this
// controller and not, for example, by "kubectl create job --from".
func runOf(cj *batchv1.CronJob, job *batchv1.Job) (time.Time, bool) {
	run, err := time.Parse(time.RFC3339, job.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	return run, err == nil && job.Name == jobName(cj, run)
}
