package reconcile

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Reasons of events about pods, as upstream spells them.
const (
	ReasonCreated      = "SuccessfulCreate"
	ReasonCreateFailed = "FailedCreate"
	ReasonDeleted      = "SuccessfulDelete"
	ReasonDeleteFailed = "FailedDelete"
)

// PodWriter carries out what was decided for the pods of an owner, tells the
// owner's users, and lets Fence and Deletions know.
type PodWriter struct {
	Client    kubernetes.Interface
	Events    *Events
	Store     Store // of the pods' informer
	Fence     *Fence
	Deletions *Deletions
}

// Create makes n pods in the owner's namespace, in slow-start batches, and
// returns how many it made. That the namespace is terminating is no error.
func (w PodWriter) Create(ctx context.Context, key types.NamespacedName, owner runtime.Object, n int, pod func(i int) *corev1.Pod) (int, error) {
	made, err := SlowStart(ctx, n, func(ctx context.Context, i int) error {
		created, err := w.Client.CoreV1().Pods(key.Namespace).Create(ctx, pod(i), metav1.CreateOptions{})
		if err != nil {
			if !IsNamespaceTerminating(err) {
				w.Events.Warning(owner, ReasonCreateFailed, "Error creating: %v", err)
			}
			return err
		}
		w.Fence.Wrote(key, w.Store, created.ResourceVersion)
		w.Events.Normal(owner, ReasonCreated, "Created pod: %v", created.Name)
		return nil
	})
	if IsNamespaceTerminating(err) {
		return made, nil
	}
	return made, err
}

// Delete deletes these very pods. That one is gone, or replaced by another of
// its name, is no error.
func (w PodWriter) Delete(ctx context.Context, key types.NamespacedName, owner runtime.Object, pods []*corev1.Pod) error {
	return Parallel(ctx, len(pods), func(ctx context.Context, i int) error {
		pod := pods[i]
		err := w.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *metav1.NewPreconditionDeleteOptions(string(pod.UID)))
		switch {
		case err == nil:
			w.Deletions.Sent(key, pod.UID)
			w.Events.Normal(owner, ReasonDeleted, "Deleted pod: %v", pod.Name)
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, and perhaps replaced
			w.Deletions.Sent(key, pod.UID)
		default:
			w.Events.Warning(owner, ReasonDeleteFailed, "Error deleting: %v", err)
			return fmt.Errorf("delete pod %s: %w", pod.Name, err)
		}
		return nil
	})
}

// Patch returns the function with which Claim adopts and releases pods for an owner.
func (w PodWriter) Patch(key types.NamespacedName) func(ctx context.Context, pod *corev1.Pod, data []byte) error {
	return func(ctx context.Context, pod *corev1.Pod, data []byte) error {
		patched, err := w.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
		if err == nil {
			w.Fence.Wrote(key, w.Store, patched.ResourceVersion)
		}
		return err
	}
}
