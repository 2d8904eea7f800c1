package job

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
)

// outcomeOf is all that the plan wants.
func outcomeOf(p plan) outcome {
	out := outcome{discarded: sets.New[types.UID](), deleted: sets.New[types.UID](), created: len(p.Create)}
	for _, pod := range p.Delete {
		out.deleted.Insert(pod.UID)
		if p.Discard {
			out.discarded.Insert(pod.UID)
		}
	}
	return out
}

// nothing came true.
func nothing(plan) outcome { return outcome{} }

func TestSettle(t *testing.T) {
	ignore := onFailure(exitCodes(batchv1.PodFailurePolicyActionIgnore, 1))
	onSuccess := func(job *batchv1.Job) {
		job.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0")}}}
	}
	decidedToFail := condition(batchv1.JobFailureTarget, "PodFailurePolicy")
	running := started(0)
	cases := []struct {
		name    string
		job     *batchv1.Job
		pods    []*corev1.Pod
		out     func(plan) outcome
		want    string
		release string
	}{
		{"new pods are active", jobOf(5, 2), nil, outcomeOf, "active=2", ""},
		{"pods that could not be created are not", jobOf(5, 2), nil, nothing, "", ""},
		{"deleted pods are terminating", jobOf(5, 1), []*corev1.Pod{pod("a", ready), pod("b", pending)}, outcomeOf, "active=1 ready=1 terminating=1", ""},
		{"pods that could not be deleted are active", jobOf(5, 1), []*corev1.Pod{pod("a", ready), pod("b", ready)}, nothing, "active=2 ready=2", ""},
		{"a pod that ended is taken in, then released", jobOf(2, 2), []*corev1.Pod{pod("a", succeeded), pod("b", failed)}, outcomeOf, "active=1 uncounted=2", "a b"},
		{"one that was taken in is released again, not taken in again", jobOf(2, 2, uncounted([]types.UID{"a"}, nil)), []*corev1.Pod{pod("a", succeeded)}, outcomeOf, "active=1 uncounted=1", "a"},
		{"a released pod is counted", jobOf(2, 2, uncounted([]types.UID{"a"}, nil)), []*corev1.Pod{pod("a", succeeded, untracked)}, outcomeOf, "active=1 succeeded=1", ""},
		{"also when it is gone", jobOf(1, 1, uncounted(nil, []types.UID{"a"})), nil, outcomeOf, "active=1 failed=1", ""},
		{"an ignored failure is released, not counted", jobOf(1, 1, ignore), []*corev1.Pod{pod("a", failed)}, outcomeOf, "active=1", "a"},
		{"a pod that is asked to end has failed", jobOf(1, 1), []*corev1.Pod{pod("a", terminating)}, outcomeOf, "terminating=1 uncounted=1", "a"},
		{"but not if only failed ones are replaced", jobOf(1, 1, onlyFailedReplaced), []*corev1.Pod{pod("a", terminating)}, outcomeOf, "terminating=1", ""},
		{"a pod that was failed and then succeeds stays failed", jobOf(1, 1, uncounted(nil, []types.UID{"a"})), []*corev1.Pod{pod("a", succeeded)}, outcomeOf, "active=1 uncounted=1", "a"},
		{"a suspended Job does not count the pods that it takes away", jobOf(1, 1, suspended), []*corev1.Pod{pod("a")}, outcomeOf, "terminating=1 Suspended", ""},
		{"the last success ends the Job when it is counted", jobOf(1, 1, running), []*corev1.Pod{pod("a", succeeded)}, outcomeOf, "uncounted=1 SuccessCriteriaMet", "a"},
		{"and then", jobOf(1, 1, running, uncounted([]types.UID{"a"}, nil), condition(batchv1.JobSuccessCriteriaMet, "CompletionsReached")), nil, outcomeOf, "succeeded=1 SuccessCriteriaMet Complete", ""},
		{"a Job with nothing to do is complete", jobOf(0, 1), nil, outcomeOf, "SuccessCriteriaMet Complete", ""},
		{"so is one that is suspended", jobOf(0, 1, suspended), nil, outcomeOf, "SuccessCriteriaMet Complete", ""},
		{"it is not while a pod runs that is too much", jobOf(1, 2, counted(1, 0)), []*corev1.Pod{pod("a")}, nothing, "active=1 succeeded=1", ""},
		{"nor while that pod terminates", jobOf(1, 2, counted(1, 0)), []*corev1.Pod{pod("a")}, outcomeOf, "terminating=1 succeeded=1 SuccessCriteriaMet", ""},
		{"a work queue is complete when the last worker has ended", jobOf(0, 2, workQueue, counted(1, 0)), []*corev1.Pod{pod("a", failed, untracked)}, outcomeOf, "succeeded=1 SuccessCriteriaMet Complete", ""},
		{"and not before", jobOf(0, 2, workQueue, counted(1, 0)), []*corev1.Pod{pod("a")}, outcomeOf, "active=1 succeeded=1", ""},
		{"a Job that fails cuts its pods short and counts them", jobOf(3, 3, limit(0)), []*corev1.Pod{pod("a", failed), pod("b")}, outcomeOf, "terminating=1 uncounted=2 FailureTarget", "a b"},
		{"those that it could not delete stay", jobOf(3, 3, limit(0)), []*corev1.Pod{pod("a", failed), pod("b")}, nothing, "active=1 uncounted=1 FailureTarget", "a"},
		{"it has failed when the last has ended", jobOf(3, 3, decidedToFail), []*corev1.Pod{pod("b", terminating, untracked)}, outcomeOf, "terminating=1 FailureTarget", ""},
		{"and then", jobOf(3, 3, decidedToFail), nil, outcomeOf, "FailureTarget Failed", ""},
		{"a Job that succeeds by policy does not count those it cuts short", jobOf(3, 3, indexed, onSuccess),
			[]*corev1.Pod{pod("a", atIndex(0), succeeded), pod("b", atIndex(1))}, outcomeOf, "terminating=1 succeeded=1 completed:0 SuccessCriteriaMet", "a b"},
		{"an index that succeeded is taken in by itself", jobOf(3, 1, indexed, completedIndexes("0")), []*corev1.Pod{pod("a", atIndex(1), succeeded)}, outcomeOf, "active=1 succeeded=2 completed:0,1", "a"},
		{"a second success of an index makes no difference", jobOf(3, 1, indexed, completedIndexes("0")), []*corev1.Pod{pod("a", atIndex(0), succeeded)}, outcomeOf, "active=1 succeeded=1 completed:0", "a"},
		{"a pod without a place is released uncounted", jobOf(3, 1, indexed), []*corev1.Pod{pod("a", atIndex(7), succeeded), pod("b", failed)}, outcomeOf, "active=1", "a b"},
		{"a Job that shrinks counts less", jobOf(2, 2, indexed, completedIndexes("0,5-7"), counted(4, 0)), nil, outcomeOf, "active=1 succeeded=1 completed:0", ""},
		{"a failed pod waits for its replacement", jobOf(1, 1, limitPerIndex(1)), []*corev1.Pod{pod("a", atIndex(0), failed)}, outcomeOf, "active=1", ""},
		{"and goes when that is there", jobOf(1, 1, limitPerIndex(1)), []*corev1.Pod{pod("a", atIndex(0), failed), pod("b", atIndex(0), afterFailures(1))}, outcomeOf, "active=1 uncounted=1", "a"},
		{"an index that failed for good needs none", jobOf(2, 2, limitPerIndex(0)), []*corev1.Pod{pod("a", atIndex(0), failed)}, outcomeOf, "active=1 uncounted=1 failed:0", "a"},
		{"an index that has failed does not succeed later", jobOf(2, 2, limitPerIndex(0), failedIndexes("0")), []*corev1.Pod{pod("a", atIndex(0), succeeded)}, outcomeOf, "active=1 failed:0", "a"},
		{"an index that has succeeded does not fail later", jobOf(2, 2, limitPerIndex(0), completedIndexes("0")), []*corev1.Pod{pod("a", atIndex(0), failed)}, outcomeOf, "active=1 succeeded=1 uncounted=1 completed:0", "a"},
		{"a Job that is being deleted lets all pods go and counts those that ended", jobOf(2, 2, isDeleted), []*corev1.Pod{pod("a"), pod("b", succeeded)}, outcomeOf, "active=1 uncounted=1", "a b"},
		{"at most a burst is taken in at once", jobOf(900, 900), ended(burst + 7), outcomeOf, "active=393 uncounted=500", names(ended(burst))},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := c.job.DeepCopy()
			p := decide(c.job, c.pods, backoff{}, now)
			s := settle(p, c.out(p), now)
			if got := describe(s.Status); got != c.want {
				t.Errorf("status:\ngot  %s\nwant %s", got, c.want)
			}
			if got := names(s.Release); got != c.release {
				t.Errorf("released:\ngot  %s\nwant %s", got, c.release)
			}
			if differs(c.job.Status, before.Status) {
				t.Error("the cached Job was changed")
			}
			if err := strings.Join(validate(before, s.Status), "; "); err != "" {
				t.Errorf("the API server would say: %s", err)
			}
		})
	}
}

func ended(n int) []*corev1.Pod {
	pods := many(n)
	for _, p := range pods {
		succeeded(p)
	}
	return pods
}

func TestStartTime(t *testing.T) {
	start := func(job *batchv1.Job) *batchv1.Job {
		next := job.DeepCopy()
		next.Status = settle(decide(job, nil, backoff{}, now), outcome{}, now).Status
		return next
	}
	job := start(jobOf(1, 1))
	if at := job.Status.StartTime; at == nil || !at.Time.Equal(now) {
		t.Errorf("a new Job started at %v", at)
	}
	suspended(job)
	if job = start(job); job.Status.StartTime != nil {
		t.Errorf("a suspended Job started at %v", job.Status.StartTime)
	}
	job.Spec.Suspend = nil
	if job = start(job); job.Status.StartTime == nil || isTrue(job.Status.Conditions, batchv1.JobSuspended) || len(job.Status.Conditions) != 1 {
		t.Errorf("resumed: started at %v, conditions %v", job.Status.StartTime, job.Status.Conditions)
	}
	if job = start(jobOf(1, 1, suspended, counted(1, 0))); job.Status.StartTime == nil {
		t.Error("a Job that is complete while suspended has no start time, which the API server refuses")
	}
}

func TestOnlyNewNumbersCanWait(t *testing.T) {
	cases := []struct {
		name string
		job  *batchv1.Job
		pods []*corev1.Pod
		want bool
	}{
		{"the first status can wait for what comes next", jobOf(1, 1), nil, false},
		{"but not when it has a condition", jobOf(1, 1, suspended), nil, true},
		{"a count can", jobOf(9, 9, seen, started(0)), []*corev1.Pod{pod("a", succeeded)}, false},
		{"a new condition is urgent", jobOf(1, 1, seen, started(0)), []*corev1.Pod{pod("a", succeeded)}, true},
		{"a new start is", jobOf(9, 9, seen), nil, true},
		{"a failed pod is whose replacement is taken away, since it would wait for another", jobOf(1, 0, limitPerIndex(1), seen, started(0)),
			[]*corev1.Pod{pod("a", atIndex(0), failed), pod("b", atIndex(0), afterFailures(1))}, true},
		{"a Job that is being deleted is", jobOf(9, 9, seen, started(0), isDeleted), []*corev1.Pod{pod("a", succeeded)}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := settle(decide(c.job, c.pods, backoff{}, now), outcome{}, now).Urgent; got != c.want {
				t.Errorf("urgent: %v", got)
			}
		})
	}
}

// seen has a status.
func seen(job *batchv1.Job) { job.Status.Ready = new(int32) }
