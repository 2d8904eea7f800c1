package cronjob

import (
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// model is one CronJob, its Jobs and a wall clock, with a controller that may
// end between any two writes.
type model struct {
	cj      *batchv1.CronJob
	jobs    map[string]*batchv1.Job // by name
	started map[string]bool         // names ever used
	now     time.Time
	ever    int
}

// step does what carryOut does, up to the given number of writes.
func (m *model) step(t *rapid.T, writes int) {
	write := func() bool { writes--; return writes >= 0 }
	p := decide(m.cj, m.list(), time.Time{}, m.now)
	if p.recordsFirst(m.cj.Status) {
		if write() {
			m.cj.Status = p.Status
		}
		return
	}
	for _, j := range p.Delete {
		if finished(j) == "" {
			t.Fatalf("%s is unfinished and deleted as history", j.Name)
		}
		if !write() {
			return
		}
		delete(m.jobs, j.Name)
	}
	for _, j := range p.Replace {
		if !write() {
			return
		}
		delete(m.jobs, j.Name)
	}
	status := withReplaced(p.Status, p.Replace)
	if p.Start != nil {
		if !write() {
			return
		}
		status = withStarted(status, m.create(t, p), p.Run)
	}
	if write() {
		m.cj.Status = status
	}
}

func (m *model) create(t *rapid.T, p plan) *batchv1.Job {
	if existing := m.jobs[p.Start.Name]; existing != nil {
		return existing
	}
	if m.started[p.Start.Name] {
		t.Fatalf("the run at %v starts twice", p.Run)
	}
	if p.Run.After(m.now) {
		t.Fatalf("the run at %v starts early, at %v", p.Run, m.now)
	}
	if d := m.cj.Spec.StartingDeadlineSeconds; d != nil && m.now.Sub(p.Run) > time.Duration(*d)*time.Second {
		t.Fatalf("the run at %v starts after its deadline, at %v", p.Run, m.now)
	}
	if m.cj.Spec.ConcurrencyPolicy != batchv1.AllowConcurrent && m.unfinished() > 0 {
		t.Fatalf("the run at %v starts beside another, policy %s", p.Run, m.cj.Spec.ConcurrencyPolicy)
	}
	m.ever++
	j := p.Start.DeepCopy()
	j.UID = types.UID(fmt.Sprint(m.ever))
	j.Status.StartTime = &metav1.Time{Time: m.now}
	m.jobs[j.Name], m.started[j.Name] = j, true
	return j
}

func (m *model) list() []*batchv1.Job {
	var list []*batchv1.Job
	for _, j := range m.jobs {
		list = append(list, j)
	}
	return list
}

func (m *model) unfinished() int {
	n := 0
	for _, j := range m.jobs {
		if finished(j) == "" {
			n++
		}
	}
	return n
}

// settle lets the controller work undisturbed until it has nothing to do.
func (m *model) settle(t *rapid.T) {
	for range 5 {
		m.step(t, 1000)
	}
	p := decide(m.cj, m.list(), time.Time{}, m.now)
	if p.Start != nil || len(p.Delete)+len(p.Replace) > 0 {
		t.Fatalf("does not settle: %v", p)
	}
	if got, want := len(m.cj.Status.Active), m.unfinished(); got != want {
		t.Fatalf("%d active of %d unfinished", got, want)
	}
	for end, limit := range map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: m.cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: m.cj.Spec.FailedJobsHistoryLimit,
	} {
		if n := len(surplus(m.list(), end, limit)); n > 0 {
			t.Fatalf("%d %s Jobs beyond the limit of %d", n, end, *limit)
		}
	}
}

// Two changes of clocks are within reach of every walk.
var walks = []struct{ zone, from string }{
	{"Europe/Berlin", "2026-03-28 20:00"}, {"Europe/Berlin", "2026-10-24 20:00"},
	{"America/Havana", "2026-03-07 20:00"}, {"America/Havana", "2026-10-31 20:00"},
	{"Australia/Lord_Howe", "2026-04-04 06:00"}, {"Australia/Lord_Howe", "2026-10-03 06:00"},
	{"America/Santiago", "2026-04-04 20:00"}, {"America/Santiago", "2026-09-05 20:00"},
}

func TestEveryWalkKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		walk := rapid.SampledFrom(walks).Draw(rt, "walk")
		schedule := rapid.SampledFrom([]string{"*/10 * * * *", "30 * * * *", "30 2 * * *", "0 0 * * *", "0,5 0-3 * * *", "@every 25m"}).Draw(rt, "schedule")
		policies := []batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}
		start := at(t, walk.from)
		m := &model{jobs: map[string]*batchv1.Job{}, started: map[string]bool{}, now: start, cj: &batchv1.CronJob{
			ObjectMeta: metav1.ObjectMeta{Name: "cj", UID: "cj", CreationTimestamp: metav1.Time{Time: start}},
			Spec: batchv1.CronJobSpec{
				Schedule: schedule, TimeZone: &walk.zone,
				ConcurrencyPolicy:          rapid.SampledFrom(policies).Draw(rt, "policy"),
				SuccessfulJobsHistoryLimit: new(int32(1)),
				FailedJobsHistoryLimit:     new(int32(0)),
			},
		}}
		if rapid.Bool().Draw(rt, "has a deadline") {
			m.cj.Spec.StartingDeadlineSeconds = new(rapid.Int64Range(1, 3600).Draw(rt, "deadline"))
		}
		for range rapid.IntRange(1, 60).Draw(rt, "length") {
			switch rapid.IntRange(0, 9).Draw(rt, "action") {
			case 0, 1, 2:
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 600).Draw(rt, "seconds")) * time.Second)
			case 3:
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 300).Draw(rt, "minutes")) * time.Minute)
			case 4: // the clock is set back
				m.now = m.now.Add(-time.Duration(rapid.IntRange(1, 120).Draw(rt, "minutes back")) * time.Minute)
			case 5, 6:
				for _, j := range m.list() {
					end := rapid.SampledFrom([]batchv1.JobConditionType{"", batchv1.JobComplete, batchv1.JobFailed}).Draw(rt, "end")
					if end != "" && finished(j) == "" {
						j.Status.Conditions = []batchv1.JobCondition{{Type: end, Status: corev1.ConditionTrue}}
						j.Status.CompletionTime = &metav1.Time{Time: m.now}
					}
				}
			case 7:
				m.step(rt, rapid.IntRange(0, 3).Draw(rt, "writes before it is killed"))
			case 8:
				m.cj.Spec.Suspend = new(rapid.Bool().Draw(rt, "suspend"))
			default:
				m.step(rt, 1000)
			}
		}
		m.settle(rt)
		m.cj.Spec.Suspend, m.cj.Spec.ConcurrencyPolicy = nil, batchv1.AllowConcurrent
		m.expectLatestRun(t, rt)
	})
}

// expectLatestRun goes on to the next run that is due, and finds its Job.
func (m *model) expectLatestRun(t *testing.T, rt *rapid.T) {
	last := m.cj.CreationTimestamp.Time
	if m.cj.Status.LastScheduleTime != nil {
		last = m.cj.Status.LastScheduleTime.Time
	}
	if m.now.Before(last) {
		m.now = last
	}
	next := runsOf(t, m.cj.Spec.Schedule, *m.cj.Spec.TimeZone, last).next(m.now)
	m.now = next.Add(500 * time.Millisecond)
	m.settle(rt)
	if !m.started[jobName(m.cj, next)] {
		rt.Fatalf("the run at %v did not start", next)
	}
}
