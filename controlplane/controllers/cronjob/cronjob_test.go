package cronjob

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// world is a cluster whose clock starts at midnight, UTC, and that runs the
// controller. Jobs run until a test ends them.
type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		c, err := New(w.Env("cronjob-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Run(c)
		test(w)
	})
}

// create makes a CronJob that runs every ten minutes.
func (w world) create(edits ...func(*batchv1.CronJob)) *batchv1.CronJob {
	w.t.Helper()
	cj := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "cj"},
		Spec: batchv1.CronJobSpec{
			Schedule:                   "*/10 * * * *",
			TimeZone:                   new("Etc/UTC"),
			SuccessfulJobsHistoryLimit: new(int32(2)),
			FailedJobsHistoryLimit:     new(int32(1)),
		},
	}
	for _, edit := range edits {
		edit(cj)
	}
	return testcluster.Must[*batchv1.CronJob](w.t)(w.Client.BatchV1().CronJobs("ns").Create(w.t.Context(), cj, metav1.CreateOptions{}))
}

func (w world) get() *batchv1.CronJob {
	w.t.Helper()
	return testcluster.Must[*batchv1.CronJob](w.t)(w.Client.BatchV1().CronJobs("ns").Get(w.t.Context(), "cj", metav1.GetOptions{}))
}

func (w world) edit(edit func(*batchv1.CronJob)) {
	w.t.Helper()
	cj := w.get()
	edit(cj)
	testcluster.Must[*batchv1.CronJob](w.t)(w.Client.BatchV1().CronJobs("ns").Update(w.t.Context(), cj, metav1.UpdateOptions{}))
}

func (w world) jobs() []batchv1.Job {
	w.t.Helper()
	list := testcluster.Must[*batchv1.JobList](w.t)(w.Client.BatchV1().Jobs("ns").List(w.t.Context(), metav1.ListOptions{}))
	return list.Items
}

// clockOf returns the run that a Job is for, as hours and minutes.
func clockOf(name string) string {
	var minutes int64
	if _, err := fmt.Sscanf(name, "cj-%d", &minutes); err != nil {
		return name
	}
	return time.Unix(minutes*60, 0).UTC().Format("15:04")
}

// expect compares the Jobs that exist, and those that status calls active.
func (w world) expect(jobs, active string) {
	w.t.Helper()
	var exist, listed []string
	for _, j := range w.jobs() {
		exist = append(exist, clockOf(j.Name))
	}
	for _, ref := range w.get().Status.Active {
		listed = append(listed, clockOf(ref.Name))
	}
	slices.Sort(exist)
	slices.Sort(listed)
	if got := strings.Join(exist, " "); got != jobs {
		w.t.Errorf("at %s jobs are %q, want %q", time.Now().UTC().Format("15:04:05"), got, jobs)
	}
	if got := strings.Join(listed, " "); got != active {
		w.t.Errorf("at %s active are %q, want %q", time.Now().UTC().Format("15:04:05"), got, active)
	}
}

// until lets time pass until the clock shows the given time.
func (w world) until(clock string) {
	w.t.Helper()
	layout := "15:04:05"[:len(clock)]
	parsed, err := time.Parse(layout, clock)
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now().UTC()
	passed := now.Sub(now.Truncate(24 * time.Hour))
	w.Pass(parsed.Sub(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)) - passed)
}

// end finishes the Job of the run at clock.
func (w world) end(clock string, how batchv1.JobConditionType) {
	w.t.Helper()
	for _, j := range w.jobs() {
		if clockOf(j.Name) != clock {
			continue
		}
		j.Status.Conditions = []batchv1.JobCondition{{Type: how, Status: corev1.ConditionTrue}}
		if how == batchv1.JobComplete {
			j.Status.CompletionTime = new(metav1.Now())
		}
		testcluster.Must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs("ns").UpdateStatus(w.t.Context(), &j, metav1.UpdateOptions{}))
		w.Pass(time.Second)
		return
	}
	w.t.Fatalf("there is no job of %s", clock)
}

// events returns the reasons of all events, each as often as it was sent. It
// reads them on their way: names of events follow from the time, which stands
// still here, so that not all can be stored.
func (w world) events() string {
	var reasons []string
	byName := map[string]string{}
	for _, action := range w.Client.Actions() {
		switch a := action.(type) {
		case kubetesting.CreateActionImpl:
			if e, ok := a.Object.(*corev1.Event); ok {
				byName[e.Name] = e.Reason
				reasons = append(reasons, e.Reason)
			}
		case kubetesting.PatchActionImpl: // counts one more of the same
			if a.Resource.Resource == "events" {
				reasons = append(reasons, byName[a.Name])
			}
		}
	}
	slices.Sort(reasons)
	return strings.Join(reasons, " ")
}

func TestCronJobLife(t *testing.T) {
	inWorld(t, func(w world) {
		w.create()
		w.until("00:09:59")
		w.expect("", "")
		w.until("00:10")
		w.expect("00:10", "00:10")
		if last := w.get().Status.LastScheduleTime; last == nil || last.UTC().Format("15:04:05") != "00:10:00" {
			t.Errorf("last scheduled at %v", last)
		}
		w.end("00:10", batchv1.JobComplete)
		w.expect("00:10", "")
		if done := w.get().Status.LastSuccessfulTime; done == nil || done.UTC().Format("15:04:05") != "00:10:00" {
			t.Errorf("last success at %v", done)
		}
		for _, clock := range []string{"00:20", "00:30", "00:40", "00:50"} {
			w.until(clock)
			how := batchv1.JobComplete
			if clock == "00:20" || clock == "00:40" {
				how = batchv1.JobFailed
			}
			w.end(clock, how)
		}
		w.expect("00:30 00:40 00:50", "")
	})
}

func TestJobsAreStartedAtTheExactMoment(t *testing.T) {
	inWorld(t, func(w world) {
		w.create()
		w.until("02:05")
		jobs := w.jobs()
		if len(jobs) != 12 {
			t.Errorf("%d jobs in two hours, want 12", len(jobs))
		}
		for _, j := range jobs {
			if clockOf(j.Name) != j.CreationTimestamp.UTC().Format("15:04") || j.CreationTimestamp.Second() != 0 {
				t.Errorf("%s created at %v", clockOf(j.Name), j.CreationTimestamp)
			}
		}
	})
}

func TestReplaceNeverRunsTwoAtOnce(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = batchv1.ReplaceConcurrent })
		w.until("00:10")
		w.expect("00:10", "00:10")
		w.until("00:20")
		w.expect("00:20", "00:20")
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("delete", "jobs") {
				return errors.New("not now")
			}
			return nil
		})
		w.until("00:31")
		w.expect("00:20", "00:20")
		w.Refuse(nil)
		w.until("00:35")
		w.expect("00:30", "00:30")
	})
}

func TestForbidStartsLateAndReportsEachSkippedRunOnce(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = batchv1.ForbidConcurrent })
		w.until("00:35")
		w.expect("00:10", "00:10")
		w.end("00:10", batchv1.JobComplete)
		w.expect("00:10 00:30", "00:30")
		if got, want := w.events(), "JobAlreadyActive JobAlreadyActive SawCompletedJob SuccessfulCreate SuccessfulCreate"; got != want {
			t.Errorf("events %s, want %s", got, want)
		}
	})
}

func TestDeletedJobIsReportedMissing(t *testing.T) {
	inWorld(t, func(w world) {
		w.create()
		w.until("00:10")
		if err := w.Client.BatchV1().Jobs("ns").Delete(t.Context(), w.jobs()[0].Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("00:11")
		w.expect("", "")
		if got, want := w.events(), "MissingJob SuccessfulCreate"; got != want {
			t.Errorf("events %s, want %s", got, want)
		}
	})
}

// A status that could not be written stands for a crash right after creation.
func TestCreationThatWasNotRecordedIsNotRepeated(t *testing.T) {
	inWorld(t, func(w world) {
		w.create()
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("update", "cronjobs/status") || a.GetSubresource() == "status" {
				return apierrors.NewInternalError(errors.New("disk full"))
			}
			return nil
		})
		w.until("00:15")
		w.expect("00:10", "")
		w.Refuse(nil)
		w.until("00:18")
		w.expect("00:10", "00:10")
		if got, want := w.events(), "SuccessfulCreate"; got != want {
			t.Errorf("events %s, want %s", got, want)
		}
	})
}

func TestJobOfTheRunThatExistsIsTakenForIt(t *testing.T) {
	inWorld(t, func(w world) {
		cj := w.create()
		w.until("00:09")
		// It does not say which run it is for, so only the create finds out.
		made := newJob(cj, time.Now().UTC().Truncate(10*time.Minute).Add(10*time.Minute), time.UTC)
		delete(made.Annotations, batchv1.CronJobScheduledTimestampAnnotation)
		testcluster.Must[*batchv1.Job](t)(w.Client.BatchV1().Jobs("ns").Create(t.Context(), made, metav1.CreateOptions{}))
		w.until("00:11")
		w.expect("00:10", "00:10")
	})
}

func TestJobOfTheSameNameThatIsNotOursIsLeftAlone(t *testing.T) {
	inWorld(t, func(w world) {
		foreign := newJob(w.create(), time.Now().UTC().Truncate(10*time.Minute).Add(10*time.Minute), time.UTC)
		foreign.OwnerReferences = nil
		testcluster.Must[*batchv1.Job](t)(w.Client.BatchV1().Jobs("ns").Create(t.Context(), foreign, metav1.CreateOptions{}))
		w.until("00:15")
		w.expect("00:10", "")
		w.until("00:20")
		w.expect("00:10 00:20", "00:20")
	})
}

func TestQuotaIsReportedAndTheRunStartsLater(t *testing.T) {
	inWorld(t, func(w world) {
		w.create()
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "jobs") {
				return apierrors.NewForbidden(batchv1.Resource("jobs"), "", errors.New("exceeded quota"))
			}
			return nil
		})
		w.until("00:12")
		if got := w.events(); !strings.Contains(got, "FailedCreate") {
			t.Errorf("events %q", got)
		}
		w.Refuse(nil)
		w.until("00:15")
		w.expect("00:10", "00:10")
	})
}

func TestEditedScheduleStartsNothingForThePast(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "0 0 * * *" })
		w.until("00:45")
		w.edit(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "*/20 * * * *" })
		w.until("00:59:59")
		w.expect("", "")
		w.until("01:00")
		w.expect("01:00", "01:00")
	})
}

func TestSuspendedCronJobStartsTheLatestMissedRunWhenResumed(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(func(cj *batchv1.CronJob) { cj.Spec.Suspend = new(true) })
		w.until("00:45")
		w.expect("", "")
		w.edit(func(cj *batchv1.CronJob) { cj.Spec.Suspend = new(false) })
		w.Pass(time.Second)
		w.expect("00:40", "00:40")
	})
}

func TestNothingIsWrittenWhileNothingHappens(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "0 12 * * *" })
		w.create(func(cj *batchv1.CronJob) { cj.Name, cj.Spec.Schedule = "bad", "0 0 31 2 *" })
		w.until("11:59")
		if n := w.Writes("cronjobs/status") + w.Writes("jobs"); n != 0 {
			t.Errorf("%d writes", n)
		}
		if got, want := w.events(), "InvalidSchedule"; got != want {
			t.Errorf("events %q, want %q", got, want)
		}
	})
}

func TestNamespaceThatTerminatesGetsNoJobs(t *testing.T) {
	inWorld(t, func(w world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if !a.Matches("create", "jobs") {
				return nil
			}
			attempts++
			err := apierrors.NewForbidden(batchv1.Resource("jobs"), "", errors.New("namespace is being terminated"))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
			return err
		})
		w.create()
		w.until("00:15")
		if got := w.events(); attempts > 6 || got != "" { // once a minute
			t.Errorf("%d attempts, events %q", attempts, got)
		}
	})
}
