package cronjob

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// hourly is a CronJob created at 8:30 on 2026-03-02, UTC.
func hourly(edits ...func(*batchv1.CronJob)) *batchv1.CronJob {
	cj := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "cj", UID: "cj",
			CreationTimestamp: metav1.Date(2026, 3, 2, 8, 30, 0, 0, time.UTC),
		},
		Spec: batchv1.CronJobSpec{
			Schedule:          "0 * * * *",
			ConcurrencyPolicy: batchv1.AllowConcurrent,
			JobTemplate: batchv1.JobTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"by": "me"}},
				Spec:       batchv1.JobSpec{Parallelism: new(int32(3))},
			},
		},
	}
	for _, edit := range edits {
		edit(cj)
	}
	return cj
}

// today is a time on 2026-03-02, UTC, as hours and minutes.
func today(clock string) time.Time {
	layout := "15:04:05"[:len(clock)]
	parsed, err := time.Parse(layout, clock)
	if err != nil {
		panic(err)
	}
	return parsed.AddDate(2026, 2, 1)
}

func lastRun(clock string) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Status.LastScheduleTime = &metav1.Time{Time: today(clock)} }
}

func active(clocks ...string) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) {
		for _, clock := range clocks {
			cj.Status.Active = append(cj.Status.Active, corev1.ObjectReference{Name: jobName(cj, today(clock)), UID: types.UID(clock)})
		}
	}
}

func policy(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = p }
}

func deadline(seconds int64) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = &seconds }
}

// job is the Job of the run at clock, with that as its UID.
func job(clock string, edits ...func(*batchv1.Job)) *batchv1.Job {
	j := newJob(hourly(), today(clock), time.UTC)
	j.UID = types.UID(clock)
	j.Status.StartTime = &metav1.Time{Time: today(clock)}
	for _, edit := range edits {
		edit(j)
	}
	return j
}

func ended(how batchv1.JobConditionType, clock string) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		j.Status.Conditions = []batchv1.JobCondition{{Type: how, Status: corev1.ConditionTrue}}
		if how == batchv1.JobComplete {
			j.Status.CompletionTime = &metav1.Time{Time: today(clock)}
		}
	}
}

func manual(j *batchv1.Job) {
	j.Name = "by-hand"
	j.Annotations = map[string]string{"cronjob.kubernetes.io/instantiate": "manual"}
}

// String is the plan in short, with Jobs and runs by their clock times.
func (p plan) String() string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	uids := func(jobs []*batchv1.Job) (list []types.UID) {
		for _, j := range jobs {
			list = append(list, j.UID)
		}
		return list
	}
	for _, n := range p.Notices {
		add("%s", n.Reason)
	}
	if len(p.Delete) > 0 {
		add("delete %v", uids(p.Delete))
	}
	if len(p.Replace) > 0 {
		add("replace %v", uids(p.Replace))
	}
	if p.Start != nil {
		add("start %s", p.Run.Format("15:04"))
	}
	if len(p.Status.Active) > 0 {
		var list []types.UID
		for _, ref := range p.Status.Active {
			list = append(list, ref.UID)
		}
		slices.Sort(list)
		add("active %v", list)
	}
	if p.Again > 0 {
		add("again %v", p.Again)
	}
	return strings.Join(words, ", ")
}

func TestDecide(t *testing.T) {
	const minute = "again 1m0s"
	cases := []struct {
		name string
		cj   *batchv1.CronJob
		jobs []*batchv1.Job
		now  string
		want string
	}{
		{"nothing is due after creation", hourly(), nil, "08:59", minute},
		{"it wakes at the exact moment", hourly(), nil, "08:59:42", "again 18s"},
		{"the first run starts", hourly(), nil, "09:00", "start 09:00, " + minute},
		{"a run starts late if nothing forbids it", hourly(), nil, "09:59:30", "start 09:00, again 30s"},
		{"a run that has started does not start again", hourly(lastRun("09:00")), nil, "09:30", minute},
		{"of missed runs only the latest starts", hourly(lastRun("09:00")), nil, "13:30", "start 13:00, " + minute},
		{"with a clock set back nothing starts", hourly(lastRun("09:00")), nil, "08:15", minute},
		{"suspended, nothing starts", hourly(func(cj *batchv1.CronJob) { cj.Spec.Suspend = new(true) }), nil, "13:30", ""},
		{"being deleted, nothing starts", hourly(func(cj *batchv1.CronJob) { cj.DeletionTimestamp = &metav1.Time{Time: today("13:00")} }), nil, "13:30", ""},
		{"resumed, the latest missed run starts", hourly(func(cj *batchv1.CronJob) { cj.Spec.Suspend = new(false) }), nil, "13:30", "start 13:00, " + minute},

		{"within its deadline a run starts", hourly(deadline(1800)), nil, "09:30", "start 09:00, " + minute},
		{"past its deadline it is missed", hourly(deadline(1800)), nil, "09:30:01", "MissSchedule, " + minute},
		{"a deadline longer than time can tell is none", hourly(deadline(1 << 62)), nil, "13:30", "start 13:00, " + minute},
		{"101 missed runs are too many, and the latest starts", hourly(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "* * * * *" }), nil, "10:11", "TooManyMissedTimes, start 10:11, " + minute},
		{"runs before the deadline are not counted", hourly(deadline(600), func(cj *batchv1.CronJob) { cj.Spec.Schedule = "* * * * *" }), nil, "10:11", "start 10:11, " + minute},
		{"@every starts although its interval exceeds the deadline", hourly(deadline(10), func(cj *batchv1.CronJob) { cj.Spec.Schedule = "@every 1h" }), nil, "09:30:05", "start 09:30, " + minute},

		{"Allow starts beside a running Job", hourly(lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00")}, "10:00", "start 10:00, active [09:00], " + minute},
		{"Forbid waits for a running Job", hourly(policy(batchv1.ForbidConcurrent), lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00")}, "10:00", "JobAlreadyActive, active [09:00], " + minute},
		{"Forbid starts late when the Job has ended", hourly(policy(batchv1.ForbidConcurrent), lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00", ended(batchv1.JobComplete, "10:15"))}, "10:15", "SawCompletedJob, start 10:00, " + minute},
		{"Forbid does not, past the deadline", hourly(policy(batchv1.ForbidConcurrent), deadline(60), lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00", ended(batchv1.JobFailed, ""))}, "10:15", "SawCompletedJob, MissSchedule, " + minute},
		{"Forbid is not held up by a Job made by hand", hourly(policy(batchv1.ForbidConcurrent), lastRun("09:00")), []*batchv1.Job{job("09:30", manual)}, "10:00", "UnexpectedJob, start 10:00, " + minute},
		{"Replace deletes the running Job", hourly(policy(batchv1.ReplaceConcurrent), lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00")}, "10:00", "replace [09:00], start 10:00, active [09:00], " + minute},
		{"Replace leaves a Job made by hand", hourly(policy(batchv1.ReplaceConcurrent), lastRun("09:00")), []*batchv1.Job{job("09:30", manual)}, "10:00", "UnexpectedJob, start 10:00, " + minute},
		{"Replace deletes nothing between runs", hourly(policy(batchv1.ReplaceConcurrent), lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00")}, "09:30", "active [09:00], " + minute},

		{"a Job that ended leaves the active list", hourly(lastRun("09:00"), active("09:00")), []*batchv1.Job{job("09:00", ended(batchv1.JobFailed, ""))}, "09:30", "SawCompletedJob, " + minute},
		{"a Job that is gone leaves it", hourly(lastRun("09:00"), active("09:00")), nil, "09:30", "MissingJob, " + minute},
		{"a Job whose creation was not recorded is taken over", hourly(), []*batchv1.Job{job("09:00")}, "09:00:30", "active [09:00], again 1m0s"},
		{"two of them are", hourly(), []*batchv1.Job{job("10:00"), job("09:00", func(j *batchv1.Job) { j.Status.StartTime = nil })}, "10:30", "active [09:00 10:00], again 1m0s"},
		{"it holds up Forbid like any other", hourly(policy(batchv1.ForbidConcurrent)), []*batchv1.Job{job("09:00")}, "10:00", "JobAlreadyActive, active [09:00], again 1m0s"},
		{"a Job that was replaced is not taken back while it lingers", hourly(lastRun("10:00"), active("10:00")), []*batchv1.Job{job("09:00"), job("10:00")}, "10:30", "active [10:00], " + minute},

		{"the oldest Jobs beyond the limits go", hourly(lastRun("12:00"), func(cj *batchv1.CronJob) {
			cj.Spec.SuccessfulJobsHistoryLimit, cj.Spec.FailedJobsHistoryLimit = new(int32(1)), new(int32(0))
		}), []*batchv1.Job{
			job("10:00", ended(batchv1.JobComplete, "10:01")), job("09:00", ended(batchv1.JobComplete, "09:01")),
			job("11:00", ended(batchv1.JobFailed, "")), job("12:00", ended(batchv1.JobComplete, "12:01")),
		}, "12:30", "delete [09:00 10:00 11:00], " + minute},
		{"without limits all stay", hourly(lastRun("10:00")), []*batchv1.Job{job("09:00", ended(batchv1.JobComplete, "09:01")), job("10:00", ended(batchv1.JobFailed, ""))}, "10:30", minute},
		{"running Jobs and those on their way out do not count", hourly(lastRun("11:00"), active("11:00"), func(cj *batchv1.CronJob) {
			cj.Spec.SuccessfulJobsHistoryLimit = new(int32(1))
		}), []*batchv1.Job{
			job("09:00", ended(batchv1.JobComplete, "09:01"), func(j *batchv1.Job) { j.DeletionTimestamp = &metav1.Time{Time: today("10:20")} }),
			job("10:00", ended(batchv1.JobComplete, "10:01")), job("11:00"),
		}, "11:30", "active [11:00], " + minute},

		{"an unknown time zone is reported", hourly(func(cj *batchv1.CronJob) { cj.Spec.TimeZone = new("Mars/Olympus") }), nil, "13:30", "UnknownTimeZone"},
		{"a schedule that cannot be read is reported", hourly(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "soon" }), nil, "13:30", "UnparseableSchedule"},
		{"a schedule that never comes is reported", hourly(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "0 0 31 2 *" }), nil, "13:30", "InvalidSchedule"},
		{"a time zone within the schedule is obeyed, with a warning", hourly(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "TZ=Asia/Tokyo 0 20 * * *" }), nil, "11:00", "UnsupportedSchedule, start 11:00, " + minute},
		{"a time zone shifts the schedule", hourly(func(cj *batchv1.CronJob) {
			cj.Spec.Schedule, cj.Spec.TimeZone = "0 20 * * *", new("Asia/Tokyo")
		}), nil, "10:59:30", "again 30s"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := c.cj.DeepCopy()
			if got := decide(c.cj, c.jobs, time.Time{}, today(c.now)).String(); got != c.want {
				t.Errorf("\n got: %s\nwant: %s", got, c.want)
			}
			if !equality.Semantic.DeepEqual(before, c.cj) {
				t.Error("the CronJob was modified")
			}
		})
	}
}

func TestEditedScheduleMissedNothingBeforeTheEdit(t *testing.T) {
	cj := hourly(lastRun("09:00"))
	for now, want := range map[string]string{
		"12:20": "again 1m0s",
		"13:00": "start 13:00, again 1m0s",
	} {
		if got := decide(cj, nil, today("12:10"), today(now)).String(); got != want {
			t.Errorf("at %s: %s, want %s", now, got, want)
		}
	}
}

func TestLastSuccessfulTimeIsTheLatestCompletion(t *testing.T) {
	earlier := &metav1.Time{Time: today("09:05")}
	jobs := []*batchv1.Job{
		job("10:00", ended(batchv1.JobComplete, "10:40")), job("09:30", manual, ended(batchv1.JobComplete, "10:50")),
		job("11:00", ended(batchv1.JobFailed, "")), job("09:00", ended(batchv1.JobComplete, "09:05")),
	}
	got := decide(hourly(lastRun("11:00"), func(cj *batchv1.CronJob) { cj.Status.LastSuccessfulTime = earlier }), jobs, time.Time{}, today("11:10"))
	if !got.Status.LastSuccessfulTime.Time.Equal(today("10:50")) {
		t.Errorf("last success at %v", got.Status.LastSuccessfulTime)
	}
	got = decide(hourly(lastRun("11:00"), func(cj *batchv1.CronJob) { cj.Status.LastSuccessfulTime = &metav1.Time{Time: today("11:05")} }), jobs, time.Time{}, today("11:10"))
	if !got.Status.LastSuccessfulTime.Time.Equal(today("11:05")) {
		t.Errorf("last success went back to %v", got.Status.LastSuccessfulTime)
	}
}

func TestJobIsMadeFromTheTemplate(t *testing.T) {
	cj := hourly(func(cj *batchv1.CronJob) { cj.Spec.TimeZone = new("Asia/Tokyo") })
	got := decide(cj, nil, time.Time{}, today("09:00")).Start
	ref := metav1.GetControllerOf(got)
	switch {
	case got.Name != "cj-29540700": // minutes since 1970
		t.Errorf("name %s", got.Name)
	case got.Annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"] != "2026-03-02T18:00:00+09:00" || got.Annotations["by"] != "me":
		t.Errorf("annotations %v", got.Annotations)
	case got.Labels["app"] != "x" || got.Namespace != "ns" || *got.Spec.Parallelism != 3:
		t.Errorf("job %+v", got)
	case ref == nil || ref.Kind != "CronJob" || ref.APIVersion != "batch/v1" || ref.UID != "cj" || !*ref.BlockOwnerDeletion:
		t.Errorf("controller %+v", ref)
	}
	if cj.Spec.JobTemplate.Annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"] != "" {
		t.Error("the template was modified")
	}
}
