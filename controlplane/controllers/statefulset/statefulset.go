// Package statefulset runs pods that keep what they are: a name with an
// ordinal, and with it a DNS name and volumes of their own, through every
// replacement.
//
//	StatefulSet web ─► ControllerRevision per template
//	                ─► pod web-0 ─► claim data-web-0
//	                   pod web-1 ─► claim data-web-1     one by one, in order,
//	                   …                                 or all at once (Parallel)
//
// A name is free again when the API server has forgotten the pod that had it,
// so there are never two pods with the same ordinal. The garbage collector deletes claims; this
// controller says when, by their owners.
package statefulset

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

var kind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

// hashLabel is where a StatefulSet's revision carries its hash.
const hashLabel = "controller.kubernetes.io/hash"

// Reasons of events, as upstream spells them.
const (
	reasonCreated      = "SuccessfulCreate"
	reasonCreateFailed = "FailedCreate"
	reasonUpdated      = "SuccessfulUpdate"
	reasonUpdateFailed = "FailedUpdate"
	reasonDeleted      = "SuccessfulDelete"
	reasonDeleteFailed = "FailedDelete"
	reasonConflict     = "ConflictingController"
)

// Controller runs the pods of StatefulSets.
type Controller struct {
	*reconcile.Loop
	client kubernetes.Interface
	events *reconcile.Events

	sets       appslisters.StatefulSetLister
	statuses   reconcile.Statuses
	podsOf     reconcile.ByController[*corev1.Pod]
	podStore   reconcile.Store
	writer     reconcile.PodWriter
	claims     corelisters.PersistentVolumeClaimLister
	claimStore reconcile.Store
	revisions  *reconcile.Revisions

	fence     reconcile.Fence
	deletions reconcile.Deletions
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	sets := env.Informers.Apps().V1().StatefulSets()
	pods := env.Informers.Core().V1().Pods().Informer()
	claims := env.Informers.Core().V1().PersistentVolumeClaims()
	podsOf, err := reconcile.NewByController[*corev1.Pod](pods)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		client:     env.Client,
		events:     env.NewEvents(),
		sets:       sets.Lister(),
		podsOf:     podsOf,
		podStore:   pods.GetStore(),
		claims:     claims.Lister(),
		claimStore: claims.Informer().GetStore(),
	}
	c.writer = reconcile.PodWriter{Client: env.Client, Events: c.events, Store: pods.GetStore(), Fence: &c.fence, Deletions: &c.deletions}
	if c.revisions, err = reconcile.NewRevisions(env, &c.fence); err != nil {
		return nil, err
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 16, Reconcile: c.Reconcile, FoldBursts: true, Events: c.events})
	c.statuses = reconcile.Statuses{AddAfter: c.AddAfter, Fence: &c.fence, Store: sets.Informer().GetStore(), ForPeople: true}
	return c, errors.Join(
		c.WatchSelf(sets.Informer()),
		c.WatchOwned(pods, kind.Kind, c.namesake),
		c.Watch(pods, c.podChanged),
		c.Watch(claims.Informer(), c.claimChanged),
		c.WatchOwned(c.revisions.Informer(), kind.Kind, c.mayAdopt),
	)
}

// namesake returns the set that gives pods this name. It may want to adopt the
// pod, or it waits for the name.
func (c *Controller) namesake(pod metav1.Object) []types.NamespacedName {
	name, _, ok := splitName(pod.GetName())
	if !ok {
		return nil
	}
	set, err := c.sets.StatefulSets(pod.GetNamespace()).Get(name)
	if err != nil {
		return nil
	}
	return []types.NamespacedName{reconcile.KeyOf(set)}
}

// podChanged queues a set when a name that it could not use becomes free.
func (c *Controller) podChanged(change reconcile.Change) {
	if change.After == nil {
		for _, key := range c.namesake(change.Before) {
			c.Add(key)
		}
	}
}

// claimChanged queues a set when one of its claims is gone: a pod may have to
// wait for that, or need another.
func (c *Controller) claimChanged(change reconcile.Change) {
	if change.After != nil {
		return
	}
	for _, set := range c.in(change.Before.GetNamespace()) {
		if isClaimOf(set, change.Before.GetName()) {
			c.Add(reconcile.KeyOf(set))
		}
	}
}

// mayAdopt returns the sets whose selector matches a revision without a controller.
func (c *Controller) mayAdopt(revision metav1.Object) []types.NamespacedName {
	return reconcile.MayAdopt(c.in(revision.GetNamespace()), func(set *appsv1.StatefulSet) *metav1.LabelSelector { return set.Spec.Selector }, revision.GetLabels())
}

func (c *Controller) in(namespace string) []*appsv1.StatefulSet {
	sets, _ := c.sets.StatefulSets(namespace).List(labels.Everything()) // reads a cache: no error
	return sets
}

// --- Reconcile ---

// Reconcile brings one StatefulSet a step closer to its spec. It is safe to repeat.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if err := c.fence.Check(key); err != nil {
		return err
	}
	set, err := c.sets.StatefulSets(key.Namespace).Get(key.Name)
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
	claimant := reconcile.Claimant{
		Object:   set,
		Kind:     kind,
		Selector: selector,
		Live: func(ctx context.Context) (metav1.Object, error) {
			return c.client.AppsV1().StatefulSets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		},
	}
	revisions, err := c.revisions.Claim(ctx, claimant)
	if err != nil {
		return err
	}
	now := time.Now()
	pods, err := c.claimPods(ctx, key, set, claimant, now)
	if err != nil {
		return err
	}
	history := reconcile.NewHistory(reconcile.Versioned{
		Object:     set,
		Kind:       kind,
		Template:   &set.Spec.Template,
		Collisions: new(collisions(set)),
		HashLabel:  hashLabel,
	}, revisions)
	observed := observed{
		set:     set,
		current: currentRevision(set, history),
		update:  revision{history.Current.Name, &set.Spec.Template},
		pods:    pods,
		claims:  c.claimsOf(set, pods),
		now:     now,
	}
	return c.carryOut(ctx, key, set, history, decide(observed), pods)
}

// claimPods returns the set's pods after adoption and release.
func (c *Controller) claimPods(ctx context.Context, key types.NamespacedName, set *appsv1.StatefulSet, claimant reconcile.Claimant, now time.Time) ([]*corev1.Pod, error) {
	claimant.Accepts = func(pod metav1.Object) bool { return isMember(set, pod.GetName()) }
	candidates := append(c.deletions.Overlay(key, c.podsOf.Of(set.UID), now), c.podsOf.Orphans(set.Namespace)...)
	return reconcile.Claim(ctx, claimant, candidates, c.writer.Patch(key))
}

// claimsOf returns those that exist of the claims of the set's pods, present and to come.
func (c *Controller) claimsOf(set *appsv1.StatefulSet, pods []*corev1.Pod) map[string]*corev1.PersistentVolumeClaim {
	if len(set.Spec.VolumeClaimTemplates) == 0 {
		return nil
	}
	claims := map[string]*corev1.PersistentVolumeClaim{}
	add := func(ordinal int) {
		for _, template := range set.Spec.VolumeClaimTemplates {
			name := claimName(set, template.Name, ordinal)
			if claim, err := c.claims.PersistentVolumeClaims(set.Namespace).Get(name); err == nil {
				claims[name] = claim
			}
		}
	}
	for i := range int(*set.Spec.Replicas) {
		add(start(set) + i)
	}
	for _, pod := range pods {
		add(ordinalOf(pod))
	}
	return claims
}

// currentRevision is the one that status names, as long as it exists and can be read.
func currentRevision(set *appsv1.StatefulSet, history reconcile.History) revision {
	for _, old := range history.Old {
		if old.Name != set.Status.CurrentRevision {
			continue
		}
		if template, err := reconcile.TemplateOf(old); err == nil {
			return revision{old.Name, template}
		}
	}
	return revision{history.Current.Name, &set.Spec.Template}
}
