package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// shown prints a plan in short.
func shown(p plan) string {
	var words []string
	if p.Ending != nil {
		words = append(words, "end: "+p.Ending.reason)
	}
	if len(p.Delete) > 0 {
		verb := "delete"
		if p.Discard {
			verb = "discard"
		}
		words = append(words, verb+" "+names(p.Delete))
	}
	if len(p.Create) > 0 {
		var pods []string
		for _, n := range p.Create {
			text := "one"
			if n.index != noIndex {
				text = fmt.Sprint(n.index)
			}
			if n.failures+n.ignored > 0 {
				text += fmt.Sprintf("(%d+%d)", n.failures, n.ignored)
			}
			pods = append(pods, text)
		}
		words = append(words, "create "+strings.Join(pods, " "))
	}
	if p.Again > 0 {
		words = append(words, "again in "+p.Again.String())
	}
	return strings.Join(words, ", ")
}

func names(pods []*corev1.Pod) string {
	var list []string
	for _, p := range pods {
		list = append(list, p.Name)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

type decision struct {
	name string
	job  *batchv1.Job
	pods []*corev1.Pod
	want string
}

func check(t *testing.T, cases []decision) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := shown(decide(c.job, c.pods, backoff{}, now)); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			slices.Reverse(c.pods)
			if got := shown(decide(c.job, c.pods, backoff{}, now)); got != c.want {
				t.Errorf("with the pods in another order:\ngot  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestHowManyPods(t *testing.T) {
	check(t, []decision{
		{"creates as many as may run at once", jobOf(5, 2), nil, "create one one"},
		{"creates no more than are left to do", jobOf(5, 4, counted(3, 0)), nil, "create one one"},
		{"a pod that has ended counts before the status knows", jobOf(2, 2), []*corev1.Pod{pod("a", succeeded)}, "create one"},
		{"a pod in the status does not count twice", jobOf(3, 3, uncounted([]types.UID{"a"}, nil)), []*corev1.Pod{pod("a", succeeded)}, "create one one"},
		{"a pod that was counted does not count again", jobOf(3, 3, counted(1, 0)), []*corev1.Pod{pod("a", succeeded, untracked)}, "create one one"},
		{"does nothing while enough run", jobOf(5, 2), []*corev1.Pod{pod("a"), pod("b", pending)}, ""},
		{"takes away what is too much, least progress first", jobOf(5, 1),
			[]*corev1.Pod{pod("a"), pod("b", pending), pod("c", ready), pod("d", restarted(1))}, "discard a b d"},
		{"parallelism 0 takes all away", jobOf(5, 0), []*corev1.Pod{pod("a")}, "discard a"},
		{"creates at most a burst", jobOf(9000, 9000, indexed, completedIndexes("0-8000")), nil, "create " + numbers(8001, burst)},
		{"creates nothing while it is being deleted", jobOf(5, 2, isDeleted), []*corev1.Pod{pod("a")}, ""},
		{"a work queue has all its workers", jobOf(0, 3, workQueue), []*corev1.Pod{pod("a")}, "create one one"},
		{"a work queue replaces none once one has succeeded", jobOf(0, 3, workQueue), []*corev1.Pod{pod("a", succeeded), pod("b")}, ""},
		{"takes away a pod that cannot be counted", jobOf(5, 2), []*corev1.Pod{pod("a", untracked), pod("b")}, "discard a"},
		{"lets a pod without a finalizer alone once it has been asked to end", jobOf(5, 1), []*corev1.Pod{pod("a", untracked, terminating), pod("b")}, ""},
	})
}

func numbers(first, n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprint(first+i))
	}
	return strings.Join(list, " ")
}

func TestWhichIndexes(t *testing.T) {
	check(t, []decision{
		{"creates the lowest indexes", jobOf(5, 3, indexed), nil, "create 0 1 2"},
		{"leaves out what has succeeded or runs", jobOf(5, 3, indexed, completedIndexes("0,2")), []*corev1.Pod{pod("a", atIndex(1))}, "create 3 4"},
		{"leaves out what has just succeeded", jobOf(5, 5, indexed), []*corev1.Pod{pod("a", atIndex(3), succeeded)}, "create 0 1 2 4"},
		{"takes away the younger of two of an index", jobOf(5, 5, indexed),
			[]*corev1.Pod{pod("a", atIndex(1)), pod("b", atIndex(1), pending)}, "discard b"},
		{"takes away an index that is too high", jobOf(2, 2, indexed), []*corev1.Pod{pod("a", atIndex(0)), pod("b", atIndex(2))}, "discard b"},
		{"takes away the lowest of indexes that are equally far, as upstream does", jobOf(3, 1, indexed),
			[]*corev1.Pod{pod("c", atIndex(0)), pod("b", atIndex(1)), pod("a", atIndex(2))}, "discard b c"},
		{"takes away a pod without an index", jobOf(2, 2, indexed), []*corev1.Pod{pod("a")}, "discard a"},
		{"a Job that shrinks forgets the indexes above", jobOf(2, 2, indexed, completedIndexes("0,4-7")), nil, "create 1"},
		{"a Job that grows has more", jobOf(4, 4, indexed, completedIndexes("0,1")), nil, "create 2 3"},
	})
}

func TestReplacement(t *testing.T) {
	check(t, []decision{
		{"a failed pod is replaced after its back-off", jobOf(1, 1), []*corev1.Pod{pod("a", failed)}, "create one"},
		{"and not before", jobOf(1, 1), []*corev1.Pod{pod("a", failedAgo(3*time.Second))}, "again in 7s"},
		{"running pods do not shorten the back-off", jobOf(2, 2), []*corev1.Pod{pod("a", failedAgo(3*time.Second)), pod("b")}, "again in 7s"},
		{"after a restart the back-off is known from the pods", jobOf(1, 1, counted(0, 1)), []*corev1.Pod{pod("a", failedAgo(3*time.Second), untracked)}, "again in 7s"},
		{"a terminating pod is replaced as a failed one is", jobOf(1, 1), []*corev1.Pod{pod("a", terminating)}, "again in 10s"},
		{"or only when it has ended", jobOf(1, 1, onlyFailedReplaced), []*corev1.Pod{pod("a", terminating)}, ""},
		{"or when its index has", jobOf(3, 3, indexed, onlyFailedReplaced), []*corev1.Pod{pod("a", terminating, atIndex(1))}, "create 0 2"},
		{"a pod that was taken away is replaced at once", jobOf(1, 1), []*corev1.Pod{pod("a", terminating, untracked)}, "create one"},
		{"also when it has ended", jobOf(1, 1), []*corev1.Pod{pod("a", terminating, untracked, failedAgo(0))}, "create one"},
	})
}

func TestIndexesWithALimitOfTheirOwn(t *testing.T) {
	ignored := onFailure(exitCodes(batchv1.PodFailurePolicyActionIgnore, 1))
	check(t, []decision{
		{"a replacement knows of the failure", jobOf(1, 1, limitPerIndex(2)), []*corev1.Pod{pod("a", atIndex(0), failed)}, "create 0(1+0)"},
		{"and of those before", jobOf(1, 1, limitPerIndex(3)), []*corev1.Pod{pod("a", atIndex(0), failed, afterFailures(2), afterIgnored(1))}, "create 0(3+1)"},
		{"ignored failures are known apart", jobOf(1, 1, limitPerIndex(2), ignored), []*corev1.Pod{pod("a", atIndex(0), failed, afterFailures(1))}, "create 0(1+1)"},
		{"each index has its own back-off", jobOf(3, 3, limitPerIndex(2)),
			[]*corev1.Pod{pod("a", atIndex(0), failedAgo(4*time.Second)), pod("b", atIndex(1), failedAgo(12*time.Second))}, "create 1(1+0) 2, again in 6s"},
		{"which grows with its failures, ignored ones too", jobOf(1, 1, limitPerIndex(9)),
			[]*corev1.Pod{pod("a", atIndex(0), failedAgo(4*time.Second), afterFailures(1), afterIgnored(1))}, "again in 36s"},
		{"the latest of several failures counts", jobOf(1, 1, limitPerIndex(9)),
			[]*corev1.Pod{pod("a", atIndex(0), failed, afterFailures(1)), pod("b", atIndex(0), failed)}, "create 0(2+0)"},
		{"an index that failed too often is left", jobOf(2, 2, limitPerIndex(1)), []*corev1.Pod{pod("a", atIndex(0), failed, afterFailures(1))}, "create 1"},
		{"one that the policy fails, at once", jobOf(2, 2, limitPerIndex(9), onFailure(exitCodes(batchv1.PodFailurePolicyActionFailIndex, 1))),
			[]*corev1.Pod{pod("a", atIndex(0), failed)}, "create 1"},
		{"the status remembers", jobOf(3, 3, limitPerIndex(1), failedIndexes("1")), nil, "create 0 2"},
	})
}

func TestEnding(t *testing.T) {
	failJob := onFailure(exitCodes(batchv1.PodFailurePolicyActionFailJob, 1))
	ignore := onFailure(exitCodes(batchv1.PodFailurePolicyActionIgnore, 1))
	onSuccess := func(job *batchv1.Job) {
		job.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0")}}}
	}
	maxFailed := func(n int32) func(*batchv1.Job) {
		return func(job *batchv1.Job) { job.Spec.MaxFailedIndexes = &n }
	}
	restarting := func(job *batchv1.Job) { job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure }
	check(t, []decision{
		{"as many failures as the limit are allowed", jobOf(1, 1, limit(2), counted(0, 1)), []*corev1.Pod{pod("a", failed)}, "create one"},
		{"one more ends the Job and its pods", jobOf(2, 2, limit(1), counted(0, 1)), []*corev1.Pod{pod("a", failed), pod("b")}, "end: BackoffLimitExceeded, delete b"},
		{"uncounted failures count", jobOf(1, 1, limit(0), uncounted(nil, []types.UID{"gone"})), nil, "end: BackoffLimitExceeded"},
		{"ignored failures do not", jobOf(1, 1, limit(0), ignore), []*corev1.Pod{pod("a", failed)}, "create one"},
		{"restarts count where the node restarts", jobOf(2, 2, limit(3), restarting), []*corev1.Pod{pod("a", restarted(2)), pod("b", restarted(1))}, "end: BackoffLimitExceeded, delete a b"},
		{"with a limit of 0 the first one", jobOf(1, 1, limit(0), restarting), []*corev1.Pod{pod("a", restarted(1))}, "end: BackoffLimitExceeded, delete a"},
		{"but not where it does not", jobOf(1, 1, limit(0)), []*corev1.Pod{pod("a", restarted(1))}, ""},
		{"the policy may end it at once", jobOf(2, 2, failJob), []*corev1.Pod{pod("a", failed), pod("b")}, "end: PodFailurePolicy, delete b"},
		{"it waits for its deadline", jobOf(1, 1, deadline(60), started(20*time.Second)), []*corev1.Pod{pod("a")}, "again in 40s"},
		{"from when it starts", jobOf(1, 1, deadline(60)), []*corev1.Pod{pod("a")}, "again in 1m0s"},
		{"and then ends", jobOf(1, 1, deadline(60), started(time.Minute)), []*corev1.Pod{pod("a")}, "end: DeadlineExceeded, delete a"},
		{"a suspended one has none", jobOf(1, 1, deadline(60), started(time.Hour), suspended), nil, ""},
		{"one that resumes has a new one", jobOf(1, 1, deadline(60), started(time.Hour), condition(batchv1.JobSuspended, "JobSuspended")), []*corev1.Pod{pod("a")}, "again in 1m0s"},
		{"the nearest moment counts", jobOf(1, 1, deadline(60), started(55*time.Second)), []*corev1.Pod{pod("a", failedAgo(time.Second))}, "again in 5s"},
		{"indexes that fail do not end it while others can succeed", jobOf(2, 2, limitPerIndex(0), failedIndexes("0")), []*corev1.Pod{pod("b", atIndex(1))}, ""},
		{"when all have ended it has failed", jobOf(2, 2, limitPerIndex(0), failedIndexes("0"), completedIndexes("1")), nil, "end: FailedIndexes"},
		{"too many failed indexes end it", jobOf(9, 2, limitPerIndex(0), failedIndexes("0"), maxFailed(1)),
			[]*corev1.Pod{pod("a", atIndex(2), failed), pod("b", atIndex(1))}, "end: MaxFailedIndexesExceeded, delete b"},
		{"as many as the limit do not", jobOf(3, 2, limitPerIndex(0), failedIndexes("0"), maxFailed(1)), []*corev1.Pod{pod("b", atIndex(1))}, "create 2"},
		{"success by policy ends it early", jobOf(3, 2, indexed, onSuccess), []*corev1.Pod{pod("a", atIndex(0), succeeded), pod("b", atIndex(1))}, "end: SuccessPolicy, delete b"},
		{"failure comes before success", jobOf(3, 2, indexed, onSuccess, limit(0)),
			[]*corev1.Pod{pod("a", atIndex(0), succeeded), pod("b", atIndex(1), failed)}, "end: BackoffLimitExceeded"},
		{"unless success was decided before", jobOf(3, 2, indexed, onSuccess, limit(0), condition(batchv1.JobSuccessCriteriaMet, "SuccessPolicy")),
			[]*corev1.Pod{pod("a", atIndex(0), succeeded), pod("b", atIndex(1), failed)}, "end: SuccessPolicy"},
		{"what was decided stands", jobOf(3, 2, condition(batchv1.JobFailureTarget, "PodFailurePolicy")), []*corev1.Pod{pod("b")}, "end: PodFailurePolicy, delete b"},
	})
}

func TestSuspension(t *testing.T) {
	check(t, []decision{
		{"a suspended Job has no pods", jobOf(3, 3, suspended), nil, ""},
		{"its pods are taken away and not counted", jobOf(3, 3, suspended), []*corev1.Pod{pod("a"), pod("b", pending)}, "discard a b"},
		{"more than a burst of them", jobOf(900, 900, suspended), many(burst + 7), "discard " + names(many(burst+7))},
		{"those that have ended are", jobOf(1, 1, suspended), []*corev1.Pod{pod("a", succeeded)}, ""},
		{"it resumes at once", jobOf(2, 2, condition(batchv1.JobSuspended, "JobSuspended")), []*corev1.Pod{pod("a", terminating, untracked)}, "create one one"},
	})
}

func many(n int) []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, pod(fmt.Sprintf("p%04d", i)))
	}
	return pods
}
