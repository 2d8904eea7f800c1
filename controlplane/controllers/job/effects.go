package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"weft.dev/weft/controlplane/reconcile"
)

// changePods deletes and creates what the plan says.
func (c *Controller) changePods(ctx context.Context, key types.NamespacedName, job *batchv1.Job, plan plan) (outcome, error) {
	out := outcome{discarded: sets.New[types.UID](), deleted: sets.New[types.UID]()}
	var mu sync.Mutex
	deleted := reconcile.Parallel(ctx, len(plan.Delete), func(ctx context.Context, i int) error {
		pod := plan.Delete[i]
		// Only in the state that was decided upon: it may have succeeded since.
		options := metav1.NewPreconditionDeleteOptions(string(pod.UID))
		options.Preconditions.ResourceVersion = &pod.ResourceVersion
		if plan.Discard && isTracked(pod) {
			options.Preconditions.ResourceVersion = nil
			if err := c.writer.Patch(key)(ctx, pod, releasePatch(pod, pod.ResourceVersion)); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("discard pod %s: %w", pod.Name, err)
			}
			mu.Lock()
			out.discarded.Insert(pod.UID)
			mu.Unlock()
		}
		if err := c.delete(ctx, key, job, pod, *options); err != nil {
			return err
		}
		mu.Lock()
		out.deleted.Insert(pod.UID)
		mu.Unlock()
		return nil
	})
	var created error
	out.created, created = c.writer.Create(ctx, key, job, len(plan.Create), func(i int) *corev1.Pod { return podOf(job, plan.Create[i]) })
	return out, errors.Join(deleted, created)
}

func (c *Controller) delete(ctx context.Context, key types.NamespacedName, job *batchv1.Job, pod *corev1.Pod, options metav1.DeleteOptions) error {
	err := c.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, options)
	switch {
	case err == nil:
		c.events.Normal(job, reconcile.ReasonDeleted, "Deleted pod: %v", pod.Name)
	case apierrors.IsNotFound(err):
	case apierrors.IsConflict(err): // the cache will show what has changed
		return fmt.Errorf("delete pod %s: %w", pod.Name, err)
	default:
		c.events.Warning(job, reconcile.ReasonDeleteFailed, "Error deleting: %v", err)
		return fmt.Errorf("delete pod %s: %w", pod.Name, err)
	}
	c.deletions.Sent(key, pod.UID)
	return nil
}

// indexVariable tells containers their pod's index.
const indexVariable = "JOB_COMPLETION_INDEX"

// maxNamePrefix is what the API server keeps of a generateName.
const maxNamePrefix = 58

// podOf returns the pod to create.
func podOf(job *batchv1.Job, p newPod) *corev1.Pod {
	pod := reconcile.NewPod(&job.Spec.Template, job, gvk)
	if !isTracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if p.index == noIndex {
		return pod
	}
	index := strconv.Itoa(p.index)
	pod.Labels = with(pod.Labels, batchv1.JobCompletionIndexAnnotation, index)
	pod.Annotations = with(pod.Annotations, batchv1.JobCompletionIndexAnnotation, index)
	if job.Spec.BackoffLimitPerIndex != nil {
		pod.Annotations = with(pod.Annotations, batchv1.JobIndexFailureCountAnnotation, strconv.Itoa(p.failures))
		if p.ignored > 0 {
			pod.Annotations = with(pod.Annotations, batchv1.JobIndexIgnoredFailureCountAnnotation, strconv.Itoa(p.ignored))
		}
	}
	end := "-" + index + "-"
	pod.GenerateName = job.Name[:min(len(job.Name), maxNamePrefix-len(end))] + end
	pod.Spec.Hostname = job.Name + "-" + index
	addIndexVariable(pod.Spec.InitContainers)
	addIndexVariable(pod.Spec.Containers)
	return pod
}

func with(entries map[string]string, key, value string) map[string]string {
	if entries == nil {
		entries = map[string]string{}
	}
	entries[key] = value
	return entries
}

// addIndexVariable leaves alone a container that has such a variable.
func addIndexVariable(containers []corev1.Container) {
	for i := range containers {
		c := &containers[i]
		if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexVariable }) {
			continue
		}
		c.Env = append(c.Env, corev1.EnvVar{Name: indexVariable, ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
		}})
	}
}

// releasePatch takes the finalizer off this very pod; if version is not
// empty, only in that version.
func releasePatch(pod *corev1.Pod, version string) []byte {
	metadata := map[string]any{
		"uid":                                 pod.UID,
		"$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer},
	}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	data, _ := json.Marshal(map[string]any{"metadata": metadata}) // strings only: cannot fail
	return data
}

// tell reports as events what has changed in the conditions.
func (c *Controller) tell(job *batchv1.Job, status batchv1.JobStatus) {
	for _, condition := range status.Conditions {
		if slices.Contains(job.Status.Conditions, condition) {
			continue
		}
		isTrue := condition.Status == corev1.ConditionTrue
		switch {
		case condition.Type == batchv1.JobSuspended && isTrue:
			c.events.Normal(job, "Suspended", "%s", condition.Message)
		case condition.Type == batchv1.JobSuspended:
			c.events.Normal(job, "Resumed", "%s", condition.Message)
		case condition.Type == batchv1.JobFailed && isTrue:
			c.events.Warning(job, condition.Reason, "%s", condition.Message)
		case condition.Type == batchv1.JobComplete && isTrue:
			if n := job.Spec.Completions; n != nil && status.Succeeded > *n {
				c.events.Warning(job, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
			}
			c.events.Normal(job, "Completed", "Job completed")
		}
	}
}

func differs(a, b batchv1.JobStatus) bool { return !equality.Semantic.DeepEqual(a, b) }
