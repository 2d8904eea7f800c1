package job

import (
	"context"
	"fmt"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// orphans takes the finalizer off pods that no Job will count: their Job is
// gone, or the garbage collector has cut the tie. Else nothing could delete
// them. Its queue holds lost Jobs as "name/UID", and pods without a controller by name.
type orphans struct {
	*reconcile.Loop
	client kubernetes.Interface
	jobs   batchlisters.JobLister
	lister corelisters.PodLister
	pods   reconcile.ByController[*corev1.Pod]
}

func newOrphans(env reconcile.Env, pods reconcile.ByController[*corev1.Pod]) (*orphans, error) {
	podInformer, jobInformer := env.Informers.Core().V1().Pods(), env.Informers.Batch().V1().Jobs()
	o := &orphans{client: env.Client, jobs: jobInformer.Lister(), lister: podInformer.Lister(), pods: pods}
	o.Loop = env.NewLoop(reconcile.Config{Workers: 4, Reconcile: o.Reconcile})
	err := o.Watch(podInformer.Informer(), func(change reconcile.Change) {
		pod, ok := change.After.(*corev1.Pod)
		if !ok || !isTracked(pod) {
			return
		}
		ref := metav1.GetControllerOfNoCopy(pod)
		switch {
		case ref == nil:
			o.Add(reconcile.KeyOf(pod))
		case ref.Kind == gvk.Kind && ref.APIVersion == batchv1.SchemeGroupVersion.String() && !o.isKnown(pod.Namespace, ref.Name, ref.UID):
			o.Add(lostJob(pod.Namespace, ref.Name, ref.UID))
		}
	})
	if err != nil {
		return o, err
	}
	return o, o.Watch(jobInformer.Informer(), func(change reconcile.Change) {
		if change.After == nil {
			o.Add(lostJob(change.Before.GetNamespace(), change.Before.GetName(), change.Before.GetUID()))
		}
	})
}

// lostJob is the key of the pods of a Job that may be gone.
func lostJob(namespace, name string, uid types.UID) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name + "/" + string(uid)}
}

// isKnown reports whether the cache has this very Job.
func (o *orphans) isKnown(namespace, name string, uid types.UID) bool {
	job, err := o.jobs.Jobs(namespace).Get(name)
	return err == nil && job.UID == uid
}

// Reconcile frees the pods of a lost Job, or one pod without a controller. It
// is safe to repeat.
func (o *orphans) Reconcile(ctx context.Context, key types.NamespacedName) error {
	name, uid, isJob := strings.Cut(key.Name, "/")
	if !isJob {
		pod, err := o.lister.Pods(key.Namespace).Get(name)
		if apierrors.IsNotFound(err) || err == nil && metav1.GetControllerOfNoCopy(pod) != nil {
			return nil
		}
		if err != nil {
			return err
		}
		return o.free(ctx, pod)
	}
	pods := o.pods.Of(types.UID(uid))
	if len(pods) == 0 || o.isKnown(key.Namespace, name, types.UID(uid)) {
		return nil
	}
	// The cache may not know a Job yet whose pods it knows.
	job, err := o.client.BatchV1().Jobs(key.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil && job.UID == types.UID(uid) {
		return nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for the Job of %d pods: %w", len(pods), err)
	}
	return reconcile.Parallel(ctx, len(pods), func(ctx context.Context, i int) error { return o.free(ctx, pods[i]) })
}

// free leaves a pod alone that has changed: it may have been adopted, and if
// not, its change queues it again.
func (o *orphans) free(ctx context.Context, pod *corev1.Pod) error {
	if !isTracked(pod) {
		return nil
	}
	_, err := o.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, releasePatch(pod, pod.ResourceVersion), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
