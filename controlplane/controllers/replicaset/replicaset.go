// Package replicaset keeps the number of pods that a ReplicaSet or a
// ReplicationController asks for. Both are the same to it: a ReplicationController is read as
// a ReplicaSet with an older spelling, see kind.go.
package replicaset

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/controlplane/reconcile"
)

// Controller keeps pods for all sets of one kind.
type Controller struct {
	*reconcile.Loop
	kind      kind
	events    *reconcile.Events
	pods      reconcile.ByController[*corev1.Pod]
	writer    reconcile.PodWriter
	fence     reconcile.Fence
	deletions reconcile.Deletions
	statuses  reconcile.Statuses
}

// --- What it watches ---

// New makes the controller of ReplicaSets.
func New(env reconcile.Env) (*Controller, error) {
	k, err := newReplicaSets(env)
	if err != nil {
		return nil, err
	}
	return newController(k, env)
}

// NewReplication makes the controller of ReplicationControllers.
func NewReplication(env reconcile.Env) (*Controller, error) {
	return newController(newReplicationControllers(env), env)
}

func newController(k kind, env reconcile.Env) (*Controller, error) {
	podInformer := env.Informers.Core().V1().Pods().Informer()
	pods, err := reconcile.NewByController[*corev1.Pod](podInformer)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		kind:   k,
		events: env.NewEvents(),
		pods:   pods,
	}
	c.writer = reconcile.PodWriter{Client: env.Client, Events: c.events, Store: podInformer.GetStore(), Fence: &c.fence, Deletions: &c.deletions}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 16, Reconcile: c.Reconcile, FoldBursts: true, Events: c.events})
	c.statuses = reconcile.Statuses{AddAfter: c.AddAfter, Fence: &c.fence, Store: k.store()}
	return c, errors.Join(
		c.WatchSelf(k.informer()),
		c.WatchOwned(podInformer, k.gvk().Kind, func(pod metav1.Object) []types.NamespacedName {
			return k.matching(pod.GetNamespace(), labels.Set(pod.GetLabels()))
		}),
	)
}

// --- Reconcile ---

// Reconcile brings one set a step closer to its spec. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	set, err := c.kind.get(key)
	if apierrors.IsNotFound(err) {
		c.fence.Forget(key)
		c.deletions.Forget(key)
		c.statuses.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return nil // refused by validation; nothing to do until it is edited
	}
	now := time.Now()
	pods, err := c.claim(ctx, key, set, selector, now)
	if err != nil {
		return err
	}
	plan := decide(set.ReplicaSet, pods, func() []*corev1.Pod { return c.siblings(set) }, now)
	if !c.kind.countsTerminating() {
		plan.Status.TerminatingReplicas = nil
	}
	return c.carryOut(ctx, key, set, plan)
}

// claim returns the set's pods that have not finished, after adoption and release.
func (c *Controller) claim(ctx context.Context, key types.NamespacedName, set set, selector labels.Selector, now time.Time) ([]*corev1.Pod, error) {
	owned := c.deletions.Overlay(key, c.pods.Of(set.UID), now)
	candidates := unfinished(append(owned, c.pods.Orphans(set.Namespace)...))
	claimant := reconcile.Claimant{
		Object:   set.ReplicaSet,
		Kind:     c.kind.gvk(),
		Selector: selector,
		Live:     func(ctx context.Context) (metav1.Object, error) { return c.kind.live(ctx, key) },
	}
	return reconcile.Claim(ctx, claimant, candidates, c.writer.Patch(key))
}

func unfinished(pods []*corev1.Pod) []*corev1.Pod {
	kept := make([]*corev1.Pod, 0, len(pods))
	for _, pod := range pods {
		if !reconcile.IsFinished(pod) {
			kept = append(kept, pod)
		}
	}
	return kept
}

// siblings returns the pods of all sets with the same controller, this set's included.
func (c *Controller) siblings(set set) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, uid := range c.kind.siblings(set) {
		pods = append(pods, c.pods.Of(uid)...)
	}
	return pods
}

// --- Effects ---

// carryOut creates and deletes pods, then reports what came of it.
func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, set set, plan plan) error {
	made, failure := c.create(ctx, key, set, plan.Create)
	if len(plan.Delete) > 0 {
		failure = c.writer.Delete(ctx, key, set.object, plan.Delete)
	}
	status := withFailure(plan.Status, plan.failureReason(), failure, time.Now())
	news := newsOf(set.ReplicaSet, status).After(failure != nil || made < plan.Create)
	err := c.statuses.Write(key, news, func() (metav1.Object, error) { return c.kind.updateStatus(ctx, set, status) })
	if err != nil {
		return errors.Join(failure, err)
	}
	if plan.Again > 0 {
		c.AddAfter(key, plan.Again)
	}
	return failure
}

func (c *Controller) create(ctx context.Context, key types.NamespacedName, set set, n int) (made int, err error) {
	return c.writer.Create(ctx, key, set.object, n, func(int) *corev1.Pod { return reconcile.NewPod(&set.Spec.Template, set, c.kind.gvk()) })
}
