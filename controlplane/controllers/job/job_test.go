package job

import (
	"slices"
	"testing"
	"time"
)

func TestJobRunsToCompletion(t *testing.T) {
	inWorld(t, succeeds, func(t *testing.T, w *world) {
		w.create(jobOf(3, 2))
		w.Pass(2 * time.Second)
		w.expect("active=2 ready=2")
		w.Pass(5 * time.Second)
		w.expect("active=1 ready=1 succeeded=2")
		w.Pass(10 * time.Second)
		w.expect("succeeded=3 SuccessCriteriaMet Complete")
		job := w.get()
		if took := job.Status.CompletionTime.Sub(job.Status.StartTime.Time); took != 10*time.Second {
			t.Errorf("took %s, want 10s", took)
		}
		for _, p := range w.pods() {
			if isTracked(&p) {
				t.Errorf("%s still has its finalizer", p.Name)
			}
		}
		if got := w.reasons(); !slices.Equal(got, []string{"SuccessfulCreate", "Completed"}) {
			t.Errorf("events %v", got)
		}
		before := w.Writes("jobs/status") + w.Writes("pods")
		w.Pass(time.Hour)
		if n := w.Writes("jobs/status") + w.Writes("pods") - before; n != 0 {
			t.Errorf("%d writes while nothing happened", n)
		}
	})
}

func TestFailedPodsAreReplacedEachTimeLater(t *testing.T) {
	inWorld(t, fails, func(t *testing.T, w *world) {
		w.create(jobOf(1, 1, limit(2)))
		var starts []time.Duration
		begin := time.Now()
		for range 120 {
			if w.Pass(time.Second); len(w.made) > len(starts) {
				starts = append(starts, time.Since(begin).Truncate(time.Second))
			}
		}
		// 5 s run, 10 s wait, 5 s run, 20 s wait
		if want := []time.Duration{time.Second, 15 * time.Second, 40 * time.Second}; !slices.Equal(starts, want) {
			t.Errorf("started after %v, want %v", starts, want)
		}
		w.expect("failed=3 FailureTarget Failed")
		if got := w.reasons(); !slices.Equal(got, []string{"SuccessfulCreate", "BackoffLimitExceeded"}) {
			t.Errorf("events %v", got)
		}
	})
}
