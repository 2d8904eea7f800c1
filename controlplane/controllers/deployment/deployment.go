// Package deployment moves a Deployment from one pod template to the next, by
// making ReplicaSets and changing their sizes.
//
//	Deployment ─► ReplicaSet per template (revision) ─► pods
//	              new: template equals the Deployment's
//	              old: kept for rollback, within revisionHistoryLimit
//
// It never touches a pod. `kubectl rollout undo` puts an old template back
// into the Deployment; the set that has it becomes the new one again.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"

	"weft.dev/weft/controlplane/reconcile"
)

var kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

// Controller rolls Deployments out.
type Controller struct {
	*reconcile.Loop
	client kubernetes.Interface
	events *reconcile.Events

	deployments     appslisters.DeploymentLister
	deploymentStore reconcile.Store
	sets            appslisters.ReplicaSetLister
	setStore        reconcile.Store
	setsOf          reconcile.ByController[*appsv1.ReplicaSet]
	podsOf          reconcile.ByController[*corev1.Pod]
	fence           reconcile.Fence
	statuses        reconcile.Statuses
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	deployments := env.Informers.Apps().V1().Deployments()
	sets := env.Informers.Apps().V1().ReplicaSets()
	pods := env.Informers.Core().V1().Pods().Informer()
	setsOf, err := reconcile.NewByController[*appsv1.ReplicaSet](sets.Informer())
	if err != nil {
		return nil, err
	}
	podsOf, err := reconcile.NewByController[*corev1.Pod](pods)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		client:          env.Client,
		events:          env.NewEvents(),
		deployments:     deployments.Lister(),
		deploymentStore: deployments.Informer().GetStore(),
		sets:            sets.Lister(),
		setStore:        sets.Informer().GetStore(),
		setsOf:          setsOf,
		podsOf:          podsOf,
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 16, Reconcile: c.Reconcile, FoldBursts: true, Events: c.events})
	c.statuses = reconcile.Statuses{AddAfter: c.AddAfter, Fence: &c.fence, Store: c.deploymentStore, ForPeople: true}
	return c, errors.Join(
		c.WatchSelf(deployments.Informer()),
		c.WatchOwned(sets.Informer(), kind.Kind, c.mayAdopt),
		c.Watch(pods, c.podChanged),
	)
}

// mayAdopt returns the Deployments whose selector matches a set without a controller.
func (c *Controller) mayAdopt(set metav1.Object) []types.NamespacedName {
	all, _ := c.deployments.Deployments(set.GetNamespace()).List(labels.Everything()) // reads a cache: no error
	return reconcile.MayAdopt(all, func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector }, set.GetLabels())
}

// podChanged queues a Deployment that waits for the last old pods to end.
func (c *Controller) podChanged(change reconcile.Change) {
	pod, ok := change.Before.(*corev1.Pod)
	if !ok || change.After != nil && !reconcile.IsFinished(change.After.(*corev1.Pod)) {
		return
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return
	}
	set, err := c.sets.ReplicaSets(pod.Namespace).Get(ref.Name)
	if err != nil {
		return
	}
	owner := metav1.GetControllerOfNoCopy(set)
	if owner == nil || owner.Kind != kind.Kind {
		return
	}
	d, err := c.deployments.Deployments(pod.Namespace).Get(owner.Name)
	if err == nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		c.Add(reconcile.KeyOf(d))
	}
}

// --- Reconcile ---

// Reconcile brings one Deployment a step closer to its spec. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	d, err := c.deployments.Deployments(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		c.fence.Forget(key)
		c.statuses.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return nil // refused by validation; nothing to do until it is edited
	}
	if selector.Empty() {
		return c.refuseAll(ctx, d)
	}
	sets, err := c.claim(ctx, key, d, selector)
	if err != nil {
		return err
	}
	return c.carryOut(ctx, key, d, decide(d, sets, c.pods(d, sets), time.Now()))
}

// refuseAll tells the user of a selector that would take every pod.
func (c *Controller) refuseAll(ctx context.Context, d *appsv1.Deployment) error {
	c.events.Warning(d, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
	status := d.Status
	status.ObservedGeneration = d.Generation
	return c.updateStatus(ctx, reconcile.KeyOf(d), d, "", status)
}

// claim returns the Deployment's sets, after adoption and release.
func (c *Controller) claim(ctx context.Context, key types.NamespacedName, d *appsv1.Deployment, selector labels.Selector) ([]*appsv1.ReplicaSet, error) {
	candidates := append(c.setsOf.Of(d.UID), c.setsOf.Orphans(d.Namespace)...)
	claimant := reconcile.Claimant{
		Object:   d,
		Kind:     kind,
		Selector: selector,
		Live: func(ctx context.Context) (metav1.Object, error) {
			return c.client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
		},
	}
	return reconcile.Claim(ctx, claimant, candidates, func(ctx context.Context, set *appsv1.ReplicaSet, data []byte) error {
		patched, err := c.client.AppsV1().ReplicaSets(set.Namespace).Patch(ctx, set.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
		if err == nil {
			c.fence.Wrote(key, c.setStore, patched.ResourceVersion)
		}
		return err
	})
}

// pods returns the pods of each set. Only Recreate asks for them.
func (c *Controller) pods(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) map[types.UID][]*corev1.Pod {
	if d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	pods := make(map[types.UID][]*corev1.Pod, len(sets))
	for _, set := range sets {
		pods[set.UID] = c.podsOf.Of(set.UID)
	}
	return pods
}

// --- Effects ---

// carryOut creates, resizes and deletes sets, then reports.
func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, d *appsv1.Deployment, plan plan) error {
	if plan.Create != nil {
		if failed, err := c.create(ctx, key, d, plan.Create); err != nil {
			if failed == nil {
				return err
			}
			return errors.Join(err, c.updateStatus(ctx, key, d, "", *failed))
		}
	}
	for _, set := range plan.Update {
		written, err := c.client.AppsV1().ReplicaSets(set.Namespace).Update(ctx, set, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			continue // its deletion queues the Deployment
		}
		if err != nil {
			return fmt.Errorf("update replica set %s: %w", set.Name, err)
		}
		c.fence.Wrote(key, c.setStore, written.ResourceVersion)
	}
	for _, message := range plan.Scalings {
		c.events.Normal(d, "ScalingReplicaSet", "%s", message)
	}
	for _, set := range plan.Delete {
		err := c.client.AppsV1().ReplicaSets(set.Namespace).Delete(ctx, set.Name, *metav1.NewPreconditionDeleteOptions(string(set.UID)))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete old replica set %s: %w", set.Name, err)
		}
	}
	if plan.Again > 0 {
		c.AddAfter(key, plan.Again)
	}
	return c.updateStatus(ctx, key, d, plan.Revision, plan.Status)
}

// create makes the new set. If that fails for a reason that users should see,
// it also returns the status that tells them.
func (c *Controller) create(ctx context.Context, key types.NamespacedName, d *appsv1.Deployment, set *appsv1.ReplicaSet) (*appsv1.DeploymentStatus, error) {
	created, err := c.client.AppsV1().ReplicaSets(set.Namespace).Create(ctx, set, metav1.CreateOptions{})
	switch {
	case err == nil:
		c.fence.Wrote(key, c.setStore, created.ResourceVersion)
		return nil, nil
	case apierrors.IsAlreadyExists(err):
		return c.collision(ctx, d, set, err)
	case reconcile.IsNamespaceTerminating(err):
		return nil, err
	}
	message := fmt.Sprintf("Failed to create new replica set %q: %v", set.Name, err)
	c.events.Warning(d, reasonSetCreateError, "%s", message)
	return new(withCreateFailure(d, message, time.Now())), err
}

// collision looks at the set that has the new one's name. If it is the new set
// itself, the cache is just slow. Otherwise another template has the same
// hash, and counting the collision changes the name for the next attempt.
func (c *Controller) collision(ctx context.Context, d *appsv1.Deployment, set *appsv1.ReplicaSet, exists error) (*appsv1.DeploymentStatus, error) {
	live, err := c.client.AppsV1().ReplicaSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if metav1.IsControlledBy(live, d) && sameTemplate(&live.Spec.Template, &d.Spec.Template) {
		return nil, fmt.Errorf("replica set %s: %w", set.Name, reconcile.ErrStale)
	}
	status := *d.Status.DeepCopy()
	if status.CollisionCount == nil {
		status.CollisionCount = new(int32)
	}
	*status.CollisionCount++
	return &status, exists
}

// updateStatus writes the status and the revision annotation in one request. A
// revision of "" is left as it is.
func (c *Controller) updateStatus(ctx context.Context, key types.NamespacedName, d *appsv1.Deployment, revision string, status appsv1.DeploymentStatus) error {
	news := newsOf(d, status)
	updated := *d
	updated.Status = status
	if revision != "" && d.Annotations[annotationRevision] != revision {
		updated.Annotations = withEntry(d.Annotations, annotationRevision, revision)
		news = max(news, reconcile.Counts)
	}
	return c.statuses.Write(key, news, func() (metav1.Object, error) {
		return c.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, &updated, metav1.UpdateOptions{})
	})
}
