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

	weftcronjob "weft.dev/weft/controlplane/controllers/cronjob"
	"weft.dev/weft/controlplane/reconcile"
)

func TestCronJobsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{must[*weftcronjob.Controller](t)(weftcronjob.New(c.Env("cronjob-controller")))}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
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
		nudge:    editCronJob(func(j *batchv1.CronJob, n int) { j.Labels = map[string]string{"look": fmt.Sprint(n)} }),
		describe: func(w *world) string { return w.describeCronJobs() + w.describeJobs() },
	})
}

var zones = []*string{nil, new("Asia/Kolkata"), new("America/New_York")}

var schedules = []string{"*/5 * * * *", "0 * * * *", "30 3 * * *", "@hourly", "*/7 1-5 * * 1-5"}

func newCronJob(n int) *batchv1.CronJob {
	j := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "report", Namespace: namespace},
		Spec: batchv1.CronJobSpec{
			Schedule:    schedules[n%len(schedules)],
			TimeZone:    zones[n/len(schedules)%len(zones)],
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

// Schedule and time zone are not edited: upstream starts the latest run that the
// new ones would have had before the edit if anything makes it look, and Weft
// never does. They change when the CronJob is made anew.
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
	{"no deadline", editCronJob(func(j *batchv1.CronJob, _ int) { j.Spec.StartingDeadlineSeconds = nil })},
	{"template", editCronJob(func(j *batchv1.CronJob, n int) {
		j.Spec.JobTemplate.Labels = map[string]string{"n": fmt.Sprint(n % 3)}
		j.Spec.JobTemplate.Annotations = map[string]string{"note": fmt.Sprint(n % 2)}
	})},
	{"make anew", func(w *world, n int) {
		api := w.Client.BatchV1().CronJobs(namespace)
		j := must[*batchv1.CronJob](w.t)(api.Get(w.t.Context(), "report", metav1.GetOptions{}))
		_ = api.Delete(w.t.Context(), j.Name, metav1.DeleteOptions{})
		w.replace(j.UID, n, func(w *world, n int) {
			must[*batchv1.CronJob](w.t)(api.Create(w.t.Context(), newCronJob(n), metav1.CreateOptions{}))
		})
	}},
	{"hours pass", func(w *world, n int) { w.Pass(time.Duration(1+n%12) * time.Hour) }},
	{"a run is near", func(w *world, _ int) {
		const every = 5 * time.Minute
		w.Pass(time.Until(time.Now().Add(every).Truncate(every)) - time.Second)
	}},
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
		fmt.Fprintf(&b, "CronJob %s: active %v, scheduled %s\n", j.Name, active, optionalTime(j.Status.LastScheduleTime))
		// Upstream deletes Jobs beyond the history limit before it has written
		// down when they succeeded, and forgets that if it cannot write.
		if w.faults == nil {
			fmt.Fprintf(&b, "last success %s\n", optionalTime(j.Status.LastSuccessfulTime))
		}
	}
	return b.String()
}

func optionalTime(at *metav1.Time) string {
	if at == nil {
		return "never"
	}
	return at.UTC().Format(time.RFC3339)
}
