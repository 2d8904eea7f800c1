package statefulset

import (
	"context"
	"errors"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/controlplane/reconcile"
)

// effects carries out the plan of one step for one set.
type effects struct {
	*Controller
	key types.NamespacedName
	set *appsv1.StatefulSet
}

// carryOut records the revision, does what is planned, and reports.
func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, set *appsv1.StatefulSet, history reconcile.History, plan plan, pods []*corev1.Pod) error {
	e := effects{c, key, set}
	if set.DeletionTimestamp == nil {
		err := c.revisions.Ensure(ctx, history)
		if errors.Is(err, reconcile.ErrCollision) {
			return e.countCollision(ctx)
		}
		if err != nil {
			return err
		}
	}
	err := e.pods(ctx, plan)
	err = errors.Join(err, e.updateStatus(ctx, plan.Status, err != nil))
	if plan.Again > 0 {
		c.AddAfter(key, plan.Again)
	}
	if set.DeletionTimestamp != nil {
		return err
	}
	return errors.Join(err, c.revisions.Remove(ctx, surplus(set, history, plan.Status, pods)))
}

// surplus returns the revisions beyond the history limit that nothing refers to.
func surplus(set *appsv1.StatefulSet, history reconcile.History, status appsv1.StatefulSetStatus, pods []*corev1.Pod) []*appsv1.ControllerRevision {
	if set.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	live := map[string]bool{set.Status.CurrentRevision: true, status.CurrentRevision: true}
	for _, pod := range pods {
		live[revisionOf(pod)] = true
	}
	return history.Surplus(int(*set.Spec.RevisionHistoryLimit), func(r *appsv1.ControllerRevision) bool { return live[r.Name] })
}

// countCollision gives the new revision another name in the next step.
func (e effects) countCollision(ctx context.Context) error {
	status := *e.set.Status.DeepCopy()
	status.CollisionCount = new(collisions(e.set) + 1)
	return e.updateStatus(ctx, status, false)
}

// pods carries out what is planned for pods and claims.
func (e effects) pods(ctx context.Context, plan plan) error {
	for _, w := range plan.Warnings {
		e.events.Warning(e.set, w.reason, "%s", w.message)
	}
	for _, works := range [][]work{plan.Replicas, plan.Condemned} {
		if !slices.ContainsFunc(works, work.isAny) {
			continue
		}
		if _, err := reconcile.SlowStart(ctx, len(works), func(ctx context.Context, i int) error { return e.work(ctx, works[i]) }); err != nil {
			return err
		}
	}
	_, err := reconcile.SlowStart(ctx, len(plan.Delete), func(ctx context.Context, i int) error { return e.delete(ctx, plan.Delete[i]) })
	return err
}

// work does what is planned for one pod.
func (e effects) work(ctx context.Context, w work) error {
	for _, claim := range w.claims {
		if err := e.createClaim(ctx, w.podName, claim); err != nil {
			return err
		}
	}
	if w.create != nil {
		if err := e.create(ctx, w.create); err != nil {
			return err
		}
	}
	for _, claim := range w.own {
		if err := e.updateClaim(ctx, claim); err != nil {
			return err
		}
	}
	if w.repair != nil {
		if err := e.repair(ctx, w.repair); err != nil {
			return err
		}
	}
	if w.delete != nil {
		return e.delete(ctx, w.delete)
	}
	return nil
}

func (e effects) updateClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	written, err := e.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil // its deletion queues the set
	}
	if err != nil {
		if !apierrors.IsConflict(err) {
			e.events.Warning(e.set, reasonUpdateFailed, "Update Claim %s in StatefulSet %s failed error: %v", claim.Name, e.set.Name, err)
		}
		return fmt.Errorf("update owners of claim %s: %w", claim.Name, err)
	}
	e.fence.Wrote(e.key, e.claimStore, written.ResourceVersion)
	return nil
}

func (e effects) repair(ctx context.Context, pod *corev1.Pod) error {
	written, err := e.client.CoreV1().Pods(pod.Namespace).Update(ctx, pod, metav1.UpdateOptions{})
	switch {
	case err == nil:
		e.fence.Wrote(e.key, e.podStore, written.ResourceVersion)
		e.events.Normal(e.set, reasonUpdated, "Update Pod %s in StatefulSet %s successful", pod.Name, e.set.Name)
		return nil
	case apierrors.IsNotFound(err):
		return nil // its end queues the set
	case !apierrors.IsConflict(err):
		e.events.Warning(e.set, reasonUpdateFailed, "Update Pod %s in StatefulSet %s failed error: %v", pod.Name, e.set.Name, err)
	}
	return fmt.Errorf("update pod %s: %w", pod.Name, err)
}

func (e effects) create(ctx context.Context, pod *corev1.Pod) error {
	created, err := e.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	switch {
	case err == nil:
		e.fence.Wrote(e.key, e.podStore, created.ResourceVersion)
		e.events.Normal(e.set, reasonCreated, "Create Pod %s in StatefulSet %s successful", pod.Name, e.set.Name)
		return nil
	case !apierrors.IsAlreadyExists(err) && !reconcile.IsNamespaceTerminating(err):
		e.events.Warning(e.set, reasonCreateFailed, "Create Pod %s in StatefulSet %s failed error: %v", pod.Name, e.set.Name, err)
	}
	// If somebody else's pod has the name, its end queues the set.
	return fmt.Errorf("create pod %s: %w", pod.Name, err)
}

func (e effects) createClaim(ctx context.Context, podName string, claim *corev1.PersistentVolumeClaim) error {
	created, err := e.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, metav1.CreateOptions{})
	switch {
	case err == nil:
		e.fence.Wrote(e.key, e.claimStore, created.ResourceVersion)
		e.events.Normal(e.set, reasonCreated, "Create Claim %s Pod %s in StatefulSet %s success", claim.Name, podName, e.set.Name)
		return nil
	case !apierrors.IsAlreadyExists(err) && !reconcile.IsNamespaceTerminating(err):
		e.events.Warning(e.set, reasonCreateFailed, "Create Claim %s for Pod %s in StatefulSet %s failed error: %v", claim.Name, podName, e.set.Name, err)
	}
	return fmt.Errorf("create claim %s: %w", claim.Name, err)
}

func (e effects) delete(ctx context.Context, pod *corev1.Pod) error {
	err := e.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *metav1.NewPreconditionDeleteOptions(string(pod.UID)))
	switch {
	case err == nil:
		e.deletions.Sent(e.key, pod.UID)
		e.events.Normal(e.set, reasonDeleted, "Delete Pod %s in StatefulSet %s successful", pod.Name, e.set.Name)
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, and perhaps replaced
		e.deletions.Sent(e.key, pod.UID)
	default:
		e.events.Warning(e.set, reasonDeleteFailed, "Delete Pod %s in StatefulSet %s failed error: %v", pod.Name, e.set.Name, err)
		return fmt.Errorf("delete pod %s: %w", pod.Name, err)
	}
	return nil
}

func (e effects) updateStatus(ctx context.Context, status appsv1.StatefulSetStatus, failed bool) error {
	return e.statuses.Write(e.key, newsOf(e.set, status).After(failed), func() (metav1.Object, error) {
		updated := *e.set
		updated.Status = status
		return e.client.AppsV1().StatefulSets(e.set.Namespace).UpdateStatus(ctx, &updated, metav1.UpdateOptions{})
	})
}
