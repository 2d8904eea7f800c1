package traces

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	batchdefaults "k8s.io/kubernetes/pkg/apis/batch/v1"
	"k8s.io/kubernetes/pkg/controller/job"

	weftjob "weft.dev/weft/controlplane/controllers/job"
	"weft.dev/weft/controlplane/reconcile"
)

func TestJobsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{must[*weftjob.Controller](t)(weftjob.New(c.Env("job-controller")))}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			j, err := job.NewController(t.Context(), c.Client, c.Informers.Core().V1().Pods(), c.Informers.Batch().V1().Jobs(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			return []reconcile.Runner{upstream{"job", func(ctx context.Context) { j.Run(ctx, workers) }}}
		},
		create: func(w *world, n int) {
			must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs(namespace).Create(w.t.Context(), newJob(n), metav1.CreateOptions{}))
		},
		// No pod loses its owner alone: whether the Job adopts it again before it
		// is taken for that of a lost Job is up to chance on both sides. And no
		// pod is left that was not ready for long: when it is deleted, upstream takes
		// it for the latest failure, though it failed before others, and waits
		// too short a time for it.
		actions: append(jobActions, without(podActions, "orphan pod", "deletion cost", "pod not ready")...),
		// Upstream looks at a Job's pods once a second, so sooner than that
		// an action would meet other pods.
		pause:    3810 * time.Millisecond,
		nudge:    editJob(func(j *batchv1.Job, n int) { j.Labels = map[string]string{"look": fmt.Sprint(n)} }),
		describe: func(w *world) string { return w.describeJobs() + w.describePods() },
	})
}

// newJob is the nth of many Jobs: indexed or not, with and without policies.
func newJob(n int) *batchv1.Job {
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "work", Namespace: namespace},
		Spec: batchv1.JobSpec{
			Completions:    new(int32(1 + n%5)),
			Parallelism:    new(int32(1 + n/5%3)),
			BackoffLimit:   new(int32(n / 15 % 4)),
			ManualSelector: new(true), // the API server makes the other kind
			Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template:       podTemplate("v1"),
		},
	}
	j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	switch n / 60 % 12 {
	case 0:
		j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
	case 1:
		j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
		j.Spec.BackoffLimit = nil
		j.Spec.BackoffLimitPerIndex = new(int32(1))
		j.Spec.MaxFailedIndexes = new(int32(2))
	case 2:
		j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededCount: new(int32(2))}}}
	case 3:
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action: batchv1.PodFailurePolicyActionFailJob,
			OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
				Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42},
			},
		}}}
	case 4:
		j.Spec.Completions = nil
	case 5:
		j.Spec.ActiveDeadlineSeconds = new(int64(100))
	case 6:
		j.Spec.PodReplacementPolicy = new(batchv1.Failed)
	case 7:
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
			{Action: batchv1.PodFailurePolicyActionCount, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpNotIn, Values: []int32{42}}},
			{Action: batchv1.PodFailurePolicyActionIgnore, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}},
		}}
	case 8:
		j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
		j.Spec.BackoffLimit = nil
		j.Spec.BackoffLimitPerIndex = new(int32(2))
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action:      batchv1.PodFailurePolicyActionFailIndex,
			OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}},
		}}}
	case 9:
		j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0"), SucceededCount: new(int32(1))}}}
	case 10:
		j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	}
	batchdefaults.SetObjectDefaults_Job(j)
	return j
}

func editJob(edit func(j *batchv1.Job, n int)) func(*world, int) {
	return func(w *world, n int) {
		api := w.Client.BatchV1().Jobs(namespace)
		j := must[*batchv1.Job](w.t)(api.Get(w.t.Context(), "work", metav1.GetOptions{}))
		edit(j, n)
		must[*batchv1.Job](w.t)(api.Update(w.t.Context(), j, metav1.UpdateOptions{}))
	}
}

// end ends a pod's container.
func (w *world) end(pod *corev1.Pod, exitCode int32) {
	pods := w.Client.CoreV1().Pods(namespace)
	live, err := pods.Get(w.t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil || reconcile.IsFinished(live) {
		return
	}
	live.Status.Phase = corev1.PodSucceeded
	if exitCode != 0 {
		live.Status.Phase = corev1.PodFailed
	}
	live.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: exitCode, FinishedAt: metav1.Now()},
	}}}
	live.Status.Conditions = nil
	_, _ = pods.UpdateStatus(w.t.Context(), live, metav1.UpdateOptions{})
}

var jobActions = []action{
	{"pod succeeds", onPod(func(w *world, pod *corev1.Pod) { w.end(pod, 0) })},
	{"pod succeeds", onPod(func(w *world, pod *corev1.Pod) { w.end(pod, 0) })},
	{"pod exits", onPod(func(w *world, pod *corev1.Pod) { w.end(pod, 1) })},
	{"pod exits with 42", onPod(func(w *world, pod *corev1.Pod) { w.end(pod, 42) })},
	{"all pods succeed", func(w *world, _ int) {
		for _, pod := range w.pods() {
			w.end(pod, 0)
		}
	}},
	{"an orphan appears", strayPod("web")},
	{"container restarts", onPod(func(w *world, pod *corev1.Pod) {
		if !reconcile.IsFinished(pod) {
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", RestartCount: 1 + restarts(pod)}}
			_, _ = w.Client.CoreV1().Pods(namespace).UpdateStatus(w.t.Context(), pod, metav1.UpdateOptions{})
		}
	})},
	{"backoff limit", editJob(func(j *batchv1.Job, n int) {
		if j.Spec.BackoffLimitPerIndex == nil {
			j.Spec.BackoffLimit = new(int32(n % 5))
		}
	})},
	{"deadline", editJob(func(j *batchv1.Job, n int) { j.Spec.ActiveDeadlineSeconds = new(int64(50 + n)) })},
	{"make anew", func(w *world, n int) {
		api := w.Client.BatchV1().Jobs(namespace)
		j := must[*batchv1.Job](w.t)(api.Get(w.t.Context(), "work", metav1.GetOptions{}))
		_ = api.Delete(w.t.Context(), j.Name, metav1.DeleteOptions{})
		w.Pass(10 * time.Second)
		w.collectGarbage()
		w.Pass(10 * time.Second)
		must[*batchv1.Job](w.t)(api.Create(w.t.Context(), newJob(n), metav1.CreateOptions{}))
	}},
	{"suspend or resume", editJob(func(j *batchv1.Job, _ int) { j.Spec.Suspend = new(!*j.Spec.Suspend) })},
	{"parallelism", editJob(func(j *batchv1.Job, n int) { j.Spec.Parallelism = new(int32(n % 4)) })},
	{"elastic size", editJob(func(j *batchv1.Job, n int) {
		if *j.Spec.CompletionMode == batchv1.IndexedCompletion && j.Spec.SuccessPolicy == nil {
			j.Spec.Completions, j.Spec.Parallelism = new(int32(1+n%5)), new(int32(1+n%5))
		}
	})},
}

// podName is how messages name a pod.
var podName = regexp.MustCompile("pod " + namespace + `/\S+`)

func (w *world) describeJobs() string {
	list := must[*batchv1.JobList](w.t)(w.Client.BatchV1().Jobs(namespace).List(w.t.Context(), metav1.ListOptions{}))
	var jobs []string
	for _, j := range list.Items {
		s := j.Status
		// A Job that ends while it is suspended has no start time in upstream's
		// last write, which the API server refuses.
		ended := s.CompletionTime != nil
		started := s.StartTime != nil || slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool {
			return c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed)
		})
		text := fmt.Sprintf("Job %s labels %s annotations %s\nstatus of %s: %d active, %d succeeded, %d failed, %s ready, %s terminating, completed %q, failed indexes %s, started %t, ended %t\n",
			j.Name, describeMap(j.Labels), describeMap(j.Annotations), j.Name, s.Active, s.Succeeded, s.Failed, optional(s.Ready), optional(s.Terminating), s.CompletedIndexes,
			optionalText(s.FailedIndexes), started, ended)
		if u := s.UncountedTerminatedPods; u != nil {
			text += fmt.Sprintf("uncounted of %s: %d succeeded, %d failed\n", j.Name, len(u.Succeeded), len(u.Failed))
		}
		var conditions []string
		for _, c := range s.Conditions {
			conditions = append(conditions, fmt.Sprintf("condition of %s: %s=%s %s: %s\n", j.Name, c.Type, c.Status, c.Reason, podName.ReplaceAllString(c.Message, "pod")))
		}
		slices.Sort(conditions)
		jobs = append(jobs, text+strings.Join(conditions, ""))
	}
	slices.Sort(jobs)
	return strings.Join(jobs, "")
}

func optionalText(s *string) string {
	if s == nil {
		return "unknown"
	}
	return fmt.Sprintf("%q", *s)
}

func restarts(pod *corev1.Pod) int32 {
	for _, status := range pod.Status.ContainerStatuses {
		return status.RestartCount
	}
	return 0
}
