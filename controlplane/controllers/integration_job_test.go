package controllers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// jobs takes Jobs through the rules that the real API server has for their
// status: a step out of order would be refused.
func (w world) jobs(t *testing.T) {
	w.endContainers(t)
	t.Run("one whose pods succeed is complete", func(t *testing.T) {
		w.createJob(t, "good", "exit 0", 3, nil)
		w.expectJob(t, "good", "succeeded 3, failed 0, SuccessCriteriaMet Complete")
	})
	t.Run("indexes fail on their own", func(t *testing.T) {
		w.createJob(t, "by-index", "exit by index", 4, func(job *batchv1.Job) {
			job.Spec.CompletionMode = new(batchv1.IndexedCompletion)
			job.Spec.BackoffLimitPerIndex = new(int32(0))
		})
		w.expectJob(t, "by-index", "succeeded 2, failed 2, completed 0,2 failed 1,3 FailureTarget Failed")
	})
	t.Run("the policy fails it and ends the pods that run", func(t *testing.T) {
		w.createJob(t, "policy", "exit by order", 2, func(job *batchv1.Job) {
			job.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
				Action:      batchv1.PodFailurePolicyActionFailJob,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{1}},
			}}}
			job.Spec.CompletionMode = new(batchv1.IndexedCompletion)
		})
		w.expectJob(t, "policy", "succeeded 0, failed 2, FailureTarget Failed")
	})
	t.Run("it is suspended and resumes", func(t *testing.T) {
		w.createJob(t, "pausing", "run", 2, nil)
		w.expectJob(t, "pausing", "active 2, succeeded 0, failed 0, ")
		w.patchJob(t, "pausing", `{"spec":{"suspend":true}}`)
		w.expectJob(t, "pausing", "succeeded 0, failed 0, Suspended")
		w.patchJob(t, "pausing", `{"spec":{"suspend":false,"parallelism":1}}`)
		w.expectJob(t, "pausing", "active 1, succeeded 0, failed 0, ")
	})
	t.Run("it is deleted when its time is over, with its pods", func(t *testing.T) {
		w.createJob(t, "short", "exit 0", 1, func(job *batchv1.Job) { job.Spec.TTLSecondsAfterFinished = new(int32(1)) })
		eventually(t, "nothing of it is left", func() error {
			_, err := w.admin.BatchV1().Jobs("default").Get(t.Context(), "short", metav1.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("the Job is there: %v", err)
			}
			pods, err := w.admin.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=short"})
			if err == nil && len(pods.Items) > 0 {
				err = fmt.Errorf("%d pods, finalizers of the first %v", len(pods.Items), pods.Items[0].Finalizers)
			}
			return err
		})
	})
}

func (w world) createJob(t *testing.T, name, what string, n int32, change func(*batchv1.Job)) {
	t.Helper()
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       batchv1.JobSpec{Completions: &n, Parallelism: &n, Template: template(name, what)},
	}
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if change != nil {
		change(job)
	}
	must[*batchv1.Job](t)(w.admin.BatchV1().Jobs("default").Create(t.Context(), job, metav1.CreateOptions{}))
}

func (w world) patchJob(t *testing.T, name, patch string) {
	t.Helper()
	must[*batchv1.Job](t)(w.admin.BatchV1().Jobs("default").Patch(t.Context(), name, "application/merge-patch+json", []byte(patch), metav1.PatchOptions{}))
}

// expectJob waits for a status, and then for pods that nothing holds.
func (w world) expectJob(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, "the Job says "+want, func() error {
		job, err := w.admin.BatchV1().Jobs("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := jobStatus(job.Status); got != want {
			return fmt.Errorf("it says %s", got)
		}
		if (job.Status.StartTime == nil) != strings.HasSuffix(want, "Suspended") {
			return fmt.Errorf("started at %v", job.Status.StartTime)
		}
		pods, err := w.admin.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + name})
		if err != nil {
			return err
		}
		held := int32(0)
		for _, p := range pods.Items {
			held += int32(len(p.Finalizers))
		}
		if held != job.Status.Active {
			return fmt.Errorf("%d pods are held, %d are active", held, job.Status.Active)
		}
		return nil
	})
}

func jobStatus(s batchv1.JobStatus) string {
	var text strings.Builder
	if s.Active > 0 {
		fmt.Fprintf(&text, "active %d, ", s.Active)
	}
	fmt.Fprintf(&text, "succeeded %d, failed %d, ", s.Succeeded, s.Failed)
	if s.FailedIndexes != nil {
		fmt.Fprintf(&text, "completed %s failed %s ", s.CompletedIndexes, *s.FailedIndexes)
	}
	var conditions []string
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			conditions = append(conditions, string(c.Type))
		}
	}
	return text.String() + strings.Join(conditions, " ")
}

// endContainers ends the container of each running pod as its image says.
func (w world) endContainers(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	pods := must[watch.Interface](t)(w.admin.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{LabelSelector: batchv1.JobNameLabel}))
	go func() {
		for event := range pods.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
				w.endContainer(ctx, pod)
			}
		}
	}()
}

func (w world) endContainer(ctx context.Context, pod *corev1.Pod) {
	index := pod.Annotations[batchv1.JobCompletionIndexAnnotation]
	phase, code := "Succeeded", 0
	switch pod.Spec.Containers[0].Image {
	case "exit 0":
	case "exit by index": // odd ones fail
		if index == "1" || index == "3" {
			phase, code = "Failed", 1
		}
	case "exit by order": // the first fails, the others run
		if index != "0" {
			return
		}
		phase, code = "Failed", 1
	default:
		return
	}
	patch := fmt.Sprintf(`{"status":{"phase":%q,"containerStatuses":[{"name":"c","image":"i","imageID":"","ready":false,"restartCount":0,`+
		`"state":{"terminated":{"exitCode":%d,"finishedAt":%q}}}],"conditions":[{"type":"Ready","status":"False"}]}}`,
		phase, code, time.Now().UTC().Format(time.RFC3339))
	_, _ = w.admin.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, "application/strategic-merge-patch+json", []byte(patch), metav1.PatchOptions{}, "status")
}
