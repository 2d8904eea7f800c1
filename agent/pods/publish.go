package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// Keys of operations on the API.
const (
	opStatus = "status"
	opDelete = "delete"
)

// rewriteDelay is the least time between two writes of the same status, which
// are due when somebody else has changed it, or the API server drops a field.
const rewriteDelay = 5 * time.Second

// publish writes the pod's status to the API if it differs and, once it is
// final, deletes a pod that is to be deleted.
func (w *worker) publish(ctx context.Context, f facts, p *plan, s corev1.PodStatus) {
	if f.gone || !f.may(p, opStatus) {
		return
	}
	everyContainer(f.pod, func(c *corev1.Container) {
		if left := f.replacing(c); left > 0 {
			p.lookAgain(left)
		}
	})
	if !apiequality.Semantic.DeepEqual(f.pod.Status, s) {
		if left := w.writtenAt.Add(rewriteDelay).Sub(f.now); left > 0 && apiequality.Semantic.DeepEqual(w.written, s) {
			p.lookAgain(left)
			return
		}
		w.written, w.writtenAt = s, f.now
		w.begin(ctx, opStatus, func(ctx context.Context) error { return w.patchStatus(ctx, f.pod, s) })
		return
	}
	if f.pod.DeletionTimestamp != nil && f.tornDown && f.may(p, opDelete) && !w.deletedFor(f.pod) {
		w.begin(ctx, opDelete, func(ctx context.Context) error { return w.deletePod(ctx, f.pod) })
	}
}

// patchStatus changes the status in the API from pod.Status to s.
func (w *worker) patchStatus(ctx context.Context, pod *corev1.Pod, s corev1.PodStatus) error {
	patch, err := statusPatch(pod, s)
	if err != nil {
		return err
	}
	updated, err := w.m.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another pod of that name: the watch will tell
	}
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	w.setPod(updated)
	return nil
}

// statusPatch is the patch that makes pod's status s; it holds the UID, so
// that it fails for another pod of the same name.
func statusPatch(pod *corev1.Pod, s corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: s})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compute status patch: %w", err)
	}
	return patch, nil
}

// deletedFor reports whether the deletion was already asked for: such a pod
// only waits for its finalizers.
func (w *worker) deletedFor(pod *corev1.Pod) bool {
	return w.deleteSent && len(pod.Finalizers) > 0
}

// deletePod tells the API server that nothing of the pod is left.
func (w *worker) deletePod(ctx context.Context, pod *corev1.Pod) error {
	err := w.m.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64),
		Preconditions:      &metav1.Preconditions{UID: &pod.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod: %w", err)
	}
	w.mu.Lock()
	w.deleteSent = true
	w.mu.Unlock()
	return nil
}
