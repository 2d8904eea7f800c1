package traces

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	batchdefaults "k8s.io/kubernetes/pkg/apis/batch/v1"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/job"

	weftcronjob "weft.dev/weft/controlplane/controllers/cronjob"
	weftjob "weft.dev/weft/controlplane/controllers/job"
	"weft.dev/weft/controlplane/controllers/testcluster"
	"weft.dev/weft/controlplane/reconcile"
)

func TestJobsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c *testcluster.Cluster) []reconcile.Runner {
			return []reconcile.Runner{must[*weftjob.Controller](t)(weftjob.New(c.Env("job-controller")))}
		},
		theirs: func(t *testing.T, c *testcluster.Cluster) []reconcile.Runner {
			j, err := job.NewController(t.Context(), c.Client, c.Informers.Core().V1().Pods(), c.Informers.Batch().V1().Jobs(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			return []reconcile.Runner{upstream{"job", func(ctx context.Context) { j.Run(ctx, workers) }}}
		},
		create: func(w *world, n int) {
			must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs(namespace).Create(w.t.Context(), newJob(n), metav1.CreateOptions{}))
		},
		actions: append(jobActions, podActions[:4]...),
		// Upstream looks at a Job's pods once a second, so sooner than that
		// an action would meet other pods.
		pause:    3 * time.Second,
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
	switch n / 60 % 7 {
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
	{"suspend or resume", editJob(func(j *batchv1.Job, _ int) { j.Spec.Suspend = new(!*j.Spec.Suspend) })},
	{"parallelism", editJob(func(j *batchv1.Job, n int) { j.Spec.Parallelism = new(int32(n % 4)) })},
	{"elastic size", editJob(func(j *batchv1.Job, n int) {
		if *j.Spec.CompletionMode == batchv1.IndexedCompletion && j.Spec.SuccessPolicy == nil {
			j.Spec.Completions, j.Spec.Parallelism = new(int32(1+n%5)), new(int32(1+n%5))
		}
	})},
}

func (w *world) describeJobs() string {
	list := must[*batchv1.JobList](w.t)(w.Client.BatchV1().Jobs(namespace).List(w.t.Context(), metav1.ListOptions{}))
	var jobs []string
	for _, j := range list.Items {
		s := j.Status
		// A Job that ends while it is suspended has no start time in upstream's
		// last write, which the API server refuses.
		ended := s.CompletionTime != nil
		started := s.StartTime != nil || ended
		text := fmt.Sprintf("Job %s labels %s annotations %s\nstatus of %s: %d active, %d succeeded, %d failed, %s ready, %s terminating, completed %q, failed indexes %s, started %t, ended %t\n",
			j.Name, describeMap(j.Labels), describeMap(j.Annotations), j.Name, s.Active, s.Succeeded, s.Failed, optional(s.Ready), optional(s.Terminating), s.CompletedIndexes,
			optionalText(s.FailedIndexes), started, ended)
		if u := s.UncountedTerminatedPods; u != nil {
			text += fmt.Sprintf("uncounted of %s: %d succeeded, %d failed\n", j.Name, len(u.Succeeded), len(u.Failed))
		}
		var conditions []string
		for _, c := range s.Conditions {
			conditions = append(conditions, fmt.Sprintf("condition of %s: %s=%s %s: %s\n", j.Name, c.Type, c.Status, c.Reason, c.Message))
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

func TestCronJobsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c *testcluster.Cluster) []reconcile.Runner {
			return []reconcile.Runner{must[*weftcronjob.Controller](t)(weftcronjob.New(c.Env("cronjob-controller")))}
		},
		theirs: func(t *testing.T, c *testcluster.Cluster) []reconcile.Runner {
			j, err := cronjob.NewControllerV2(t.Context(), c.Informers.Batch().V1().Jobs(), c.Informers.Batch().V1().CronJobs(), c.Client)
			if err != nil {
				t.Fatal(err)
			}
			return []reconcile.Runner{upstream{"cronjob", func(ctx context.Context) { j.Run(ctx, workers) }}}
		},
		create: func(w *world, n int) {
			must[*batchv1.CronJob](w.t)(w.Client.BatchV1().CronJobs(namespace).Create(w.t.Context(), newCronJob(n), metav1.CreateOptions{}))
		},
		actions:  cronJobActions,
		describe: func(w *world) string { return w.describeCronJobs() + w.describeJobs() },
	})
}

var schedules = []string{"*/5 * * * *", "0 * * * *", "30 3 * * *", "@hourly", "*/7 1-5 * * 1-5"}

func newCronJob(n int) *batchv1.CronJob {
	j := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "report", Namespace: namespace},
		Spec: batchv1.CronJobSpec{
			Schedule:    schedules[n%len(schedules)],
			JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: podTemplate("v1")}},
		},
	}
	batchdefaults.SetObjectDefaults_CronJob(j)
	return j
}

func editCronJob(edit func(j *batchv1.CronJob, n int)) func(*world, int) {
	return func(w *world, n int) {
		api := w.Client.BatchV1().CronJobs(namespace)
		j := must[*batchv1.CronJob](w.t)(api.Get(w.t.Context(), "report", metav1.GetOptions{}))
		edit(j, n)
		must[*batchv1.CronJob](w.t)(api.Update(w.t.Context(), j, metav1.UpdateOptions{}))
	}
}

// finishJobs ends every nth Job, as the Job controller would.
func finishJobs(condition batchv1.JobConditionType) func(*world, int) {
	return func(w *world, n int) {
		list := must[*batchv1.JobList](w.t)(w.Client.BatchV1().Jobs(namespace).List(w.t.Context(), metav1.ListOptions{}))
		for i, j := range list.Items {
			if i%3 == n%3 && len(j.Status.Conditions) == 0 {
				j.Status.CompletionTime = new(metav1.Now())
				j.Status.Conditions = []batchv1.JobCondition{{Type: condition, Status: corev1.ConditionTrue}}
				must[*batchv1.Job](w.t)(w.Client.BatchV1().Jobs(namespace).UpdateStatus(w.t.Context(), &j, metav1.UpdateOptions{}))
			}
		}
	}
}

var policies = []batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}

// The schedule itself is not edited: until it has run once, upstream starts a
// run that lies before the edit if anything makes it look, and Weft never does.
var cronJobActions = []action{
	{"Jobs complete", finishJobs(batchv1.JobComplete)},
	{"Jobs complete", finishJobs(batchv1.JobComplete)},
	{"Jobs fail", finishJobs(batchv1.JobFailed)},
	{"policy", editCronJob(func(j *batchv1.CronJob, n int) { j.Spec.ConcurrencyPolicy = policies[n%len(policies)] })},
	{"suspend or resume", editCronJob(func(j *batchv1.CronJob, _ int) { j.Spec.Suspend = new(!*j.Spec.Suspend) })},
	{"deadline", editCronJob(func(j *batchv1.CronJob, n int) { j.Spec.StartingDeadlineSeconds = new(int64(20 + n)) })},
	{"history", editCronJob(func(j *batchv1.CronJob, n int) {
		j.Spec.SuccessfulJobsHistoryLimit, j.Spec.FailedJobsHistoryLimit = new(int32(n%3)), new(int32(n/3%3))
	})},
	{"time zone", editCronJob(func(j *batchv1.CronJob, n int) {
		j.Spec.TimeZone = []*string{nil, new("Asia/Kolkata"), new("America/New_York")}[n%3]
	})},
	{"hours pass", func(w *world, n int) { w.Pass(time.Duration(1+n%12) * time.Hour) }},
	{"delete a Job", func(w *world, n int) {
		list := must[*batchv1.JobList](w.t)(w.Client.BatchV1().Jobs(namespace).List(w.t.Context(), metav1.ListOptions{}))
		if j := pick(pointers(list.Items), n); j != nil {
			_ = w.Client.BatchV1().Jobs(namespace).Delete(w.t.Context(), j.Name, metav1.DeleteOptions{})
		}
	}},
}

func (w *world) describeCronJobs() string {
	var b strings.Builder
	list := must[*batchv1.CronJobList](w.t)(w.Client.BatchV1().CronJobs(namespace).List(w.t.Context(), metav1.ListOptions{}))
	for _, j := range list.Items {
		var active []string
		for _, ref := range j.Status.Active {
			active = append(active, ref.Name)
		}
		slices.Sort(active)
		fmt.Fprintf(&b, "CronJob %s: active %v, scheduled %v, succeeded %v\n", j.Name, active, j.Status.LastScheduleTime, j.Status.LastSuccessfulTime)
	}
	return b.String()
}
