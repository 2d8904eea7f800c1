// Package daemonset keeps one pod of a DaemonSet on every node that it is meant for.
//
//	Node, DaemonSet ─► placement: should run, may stay, must go
//	                        │
//	template ─► ControllerRevision (hash) ─► one pod per node, bound by the scheduler
//
// Which node a pod is for is written into its node affinity, so the scheduler
// still has the last word on resources and ports. A changed template replaces
// pods node by node, either old before new (maxUnavailable) or new before old
// (maxSurge); `kubectl rollout undo` puts the template of a kept revision back.
package daemonset

import (
	"context"
	"errors"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// Reasons of events, as upstream spells them.
const (
	reasonPodFailed    = "FailedDaemonPod"
	reasonPodSucceeded = "SucceededDaemonPod"
	reasonSelectingAll = "SelectingAll"
)

// eventSource is the component that tools expect; the service account is spelled otherwise.
const eventSource = "daemonset-controller"

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

// Controller keeps the pods of DaemonSets.
type Controller struct {
	*reconcile.Loop
	client kubernetes.Interface
	events *reconcile.Events

	daemonSets appslisters.DaemonSetLister
	nodes      corelisters.NodeLister
	pods       reconcile.ByController[*corev1.Pod]
	writer     reconcile.PodWriter
	revisions  *reconcile.Revisions
	statuses   reconcile.Statuses
	fence      reconcile.Fence
	deletions  reconcile.Deletions
	backoff    backoff
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	daemonSets := env.Informers.Apps().V1().DaemonSets()
	nodes := env.Informers.Core().V1().Nodes()
	podInformer := env.Informers.Core().V1().Pods().Informer()
	pods, err := reconcile.NewByController[*corev1.Pod](podInformer)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		client:     env.Client,
		events:     reconcile.NewEvents(env.Client, eventSource),
		daemonSets: daemonSets.Lister(),
		nodes:      nodes.Lister(),
		pods:       pods,
	}
	c.writer = reconcile.PodWriter{Client: env.Client, Events: c.events, Store: podInformer.GetStore(), Fence: &c.fence, Deletions: &c.deletions}
	if c.revisions, err = reconcile.NewRevisions(env, &c.fence); err != nil {
		return nil, err
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 8, Reconcile: c.Reconcile, FoldBursts: true, Events: c.events})
	c.statuses = reconcile.Statuses{AddAfter: c.AddAfter, Fence: &c.fence, Store: daemonSets.Informer().GetStore(), ForPeople: true}
	return c, errors.Join(
		c.WatchSelf(daemonSets.Informer()),
		c.WatchOwned(podInformer, kind.Kind, c.mayAdopt),
		c.WatchOwned(c.revisions.Informer(), kind.Kind, c.mayAdopt),
		c.Watch(nodes.Informer(), c.nodeChanged),
	)
}

// mayAdopt returns the DaemonSets whose selector matches an object without a controller.
func (c *Controller) mayAdopt(orphan metav1.Object) []types.NamespacedName {
	all, _ := c.daemonSets.DaemonSets(orphan.GetNamespace()).List(labels.Everything()) // reads a cache: no error
	return reconcile.MayAdopt(all, func(ds *appsv1.DaemonSet) *metav1.LabelSelector { return ds.Spec.Selector }, orphan.GetLabels())
}

// nodeChanged queues the DaemonSets to which the node is something else now.
func (c *Controller) nodeChanged(change reconcile.Change) {
	before, _ := change.Before.(*corev1.Node)
	after, _ := change.After.(*corev1.Node)
	if before != nil && after != nil && samePlace(before, after) {
		return
	}
	all, _ := c.daemonSets.List(labels.Everything()) // reads a cache: no error
	for _, ds := range affected(all, before, after) {
		c.Add(reconcile.KeyOf(ds))
	}
}

// --- Reconcile ---

// Reconcile brings one DaemonSet a step closer to its spec. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	ds, err := c.daemonSets.DaemonSets(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		c.fence.Forget(key)
		c.deletions.Forget(key)
		c.statuses.Forget(key)
		c.backoff.forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	if ds.DeletionTimestamp != nil {
		return nil // its pods and revisions are the garbage collector's
	}
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil {
		return nil // refused by validation; nothing to do until it is edited
	}
	if selector.Empty() {
		c.events.Warning(ds, reasonSelectingAll, "This daemon set is selecting all pods. A non-empty selector is required.")
		return nil
	}
	now := time.Now()
	state, err := c.read(ctx, key, ds, selector, now)
	if err != nil {
		return err
	}
	return c.carryOut(ctx, key, state, decide(state, now), now)
}

// read collects what the decision needs, after adoption and release.
func (c *Controller) read(ctx context.Context, key types.NamespacedName, ds *appsv1.DaemonSet, selector labels.Selector, now time.Time) (state, error) {
	claimant := reconcile.Claimant{
		Object:   ds,
		Kind:     kind,
		Selector: selector,
		Live: func(ctx context.Context) (metav1.Object, error) {
			return c.client.AppsV1().DaemonSets(ds.Namespace).Get(ctx, ds.Name, metav1.GetOptions{})
		},
	}
	owned := c.deletions.Overlay(key, c.pods.Of(ds.UID), now)
	pods, err := reconcile.Claim(ctx, claimant, append(owned, c.pods.Orphans(ds.Namespace)...), c.writer.Patch(key))
	if err != nil {
		return state{}, err
	}
	revisions, err := c.revisions.Claim(ctx, claimant)
	if err != nil {
		return state{}, err
	}
	nodes, err := c.nodes.List(labels.Everything())
	return state{
		ds:      ds,
		nodes:   nodes,
		pods:    pods,
		history: historyOf(ds, revisions),
		waits:   c.backoff.waits(key, ds, now),
	}, err
}

func historyOf(ds *appsv1.DaemonSet, revisions []*appsv1.ControllerRevision) reconcile.History {
	return reconcile.NewHistory(reconcile.Versioned{
		Object:     ds,
		Kind:       kind,
		Template:   &ds.Spec.Template,
		Collisions: ds.Status.CollisionCount,
		HashLabel:  appsv1.DefaultDaemonSetUniqueLabelKey,
	}, revisions)
}

// --- Effects ---

// carryOut writes the revision, then creates and deletes pods, then reports
// and tidies the history.
func (c *Controller) carryOut(ctx context.Context, key types.NamespacedName, s state, plan plan, now time.Time) error {
	err := c.revisions.Ensure(ctx, s.history)
	if errors.Is(err, reconcile.ErrCollision) {
		return c.updateStatus(ctx, key, s.ds, withCollision(s.ds.Status), false) // which queues the DaemonSet again
	}
	if err != nil {
		return err
	}
	for _, pod := range plan.Failed {
		c.events.Warning(s.ds, reasonPodFailed, "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, targetNode(pod))
		c.backoff.replaced(key, s.ds, targetNode(pod), now)
	}
	for _, pod := range plan.Succeeded {
		c.events.Normal(s.ds, reasonPodSucceeded, "Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, targetNode(pod))
	}
	failure := errors.Join(
		c.writer.Delete(ctx, key, s.ds, plan.Delete),
		c.create(ctx, key, s, plan.Create),
	)
	if err := c.updateStatus(ctx, key, s.ds, plan.Status, failure != nil); err != nil {
		return errors.Join(failure, err)
	}
	if plan.Again > 0 {
		c.AddAfter(key, plan.Again)
	}
	if failure != nil {
		return failure
	}
	return c.revisions.Remove(ctx, plan.Forget)
}

func (c *Controller) create(ctx context.Context, key types.NamespacedName, s state, nodes []string) error {
	hash := s.history.HashOf(s.history.Current)
	_, err := c.writer.Create(ctx, key, s.ds, len(nodes), func(i int) *corev1.Pod { return newPod(s.ds, nodes[i], hash) })
	return err
}

func (c *Controller) updateStatus(ctx context.Context, key types.NamespacedName, ds *appsv1.DaemonSet, status appsv1.DaemonSetStatus, failed bool) error {
	return c.statuses.Write(key, newsOf(ds, status).After(failed), func() (metav1.Object, error) {
		updated := *ds
		updated.Status = status
		return c.client.AppsV1().DaemonSets(ds.Namespace).UpdateStatus(ctx, &updated, metav1.UpdateOptions{})
	})
}
