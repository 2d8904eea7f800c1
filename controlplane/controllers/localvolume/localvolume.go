// Package localvolume makes PersistentVolumes for claims of Weft's StorageClass:
// directories of the node that the claim's first pod is scheduled to.
//
//	claim ──scheduler──► selected node ──this controller──► PersistentVolume
//	  │                                                          │ local, node affinity, finalizer
//	  │ deleted: the volume is Released                          ▼
//	  └──this controller──► delete the PersistentVolume ──► agent deletes the directory, takes the finalizer off
//
// The agent makes the directory when a pod mounts the volume first, so there is
// nothing on the node that has no PersistentVolume. A volume with reclaim policy
// Delete has a finalizer until the agent of its node has deleted the data, or
// that node is gone. With Retain there is no finalizer, and nobody deletes data.
//
// Objects are the only state: every step is found again after a crash.
package localvolume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"weft.dev/weft/controlplane/api"
	"weft.dev/weft/controlplane/reconcile"
)

// Reasons of events on claims, as upstream's provisioners word them.
const (
	reasonProvisioned = "ProvisioningSucceeded"
	reasonFailed      = "ProvisioningFailed"
)

// Controller provisions and reclaims. A key with a namespace is a claim, one
// without is a volume.
type Controller struct {
	*reconcile.Loop
	client  kubernetes.Interface
	events  *reconcile.Events
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
}

// --- What it watches ---

// New makes the controller.
func New(env reconcile.Env) (*Controller, error) {
	claims := env.Informers.Core().V1().PersistentVolumeClaims()
	volumes := env.Informers.Core().V1().PersistentVolumes()
	nodes := env.Informers.Core().V1().Nodes()
	classes := env.Informers.Storage().V1().StorageClasses()
	c := &Controller{
		client:  env.Client,
		events:  env.NewEvents(),
		claims:  claims.Lister(),
		volumes: volumes.Lister(),
		nodes:   nodes.Lister(),
		classes: classes.Lister(),
	}
	c.Loop = env.NewLoop(reconcile.Config{Workers: 4, Reconcile: c.Reconcile, Events: c.events})
	return c, errors.Join(
		c.Watch(claims.Informer(), func(change reconcile.Change) {
			if change.After != nil && change.After.(*corev1.PersistentVolumeClaim).Spec.VolumeName == "" {
				c.Add(reconcile.KeyOf(change.After))
			}
		}),
		c.Watch(volumes.Informer(), c.volumeChanged),
		c.Watch(classes.Informer(), func(change reconcile.Change) {
			if change.After != nil {
				c.addClaims(func(claim *corev1.PersistentVolumeClaim) bool { return className(claim) == change.After.GetName() })
			}
		}),
		c.Watch(nodes.Informer(), c.nodeChanged),
	)
}

// volumeChanged queues a volume of ours, or the claim of one that is gone: it
// may have no other.
func (c *Controller) volumeChanged(change reconcile.Change) {
	if change.After != nil {
		if isOurs(change.After.(*corev1.PersistentVolume)) {
			c.Add(reconcile.KeyOf(change.After))
		}
		return
	}
	if gone := change.Before.(*corev1.PersistentVolume); isOurs(gone) && gone.Spec.ClaimRef != nil {
		c.Add(types.NamespacedName{Namespace: gone.Spec.ClaimRef.Namespace, Name: gone.Spec.ClaimRef.Name})
	}
}

// nodeChanged queues what waits for a node to be able to have volumes, or to
// be gone.
func (c *Controller) nodeChanged(change reconcile.Change) {
	if change.After == nil {
		c.addClaims(selects(change.Before.GetName()))
		gone, _ := c.volumes.List(labels.SelectorFromSet(labels.Set{api.NodeLabel: change.Before.GetName()})) // reads a cache: no error
		for _, pv := range gone {
			c.Add(reconcile.KeyOf(pv))
		}
		return
	}
	after := change.After.(*corev1.Node)
	if change.Before == nil || unable(change.Before.(*corev1.Node)) != unable(after) {
		c.addClaims(selects(after.Name))
	}
}

func selects(node string) func(*corev1.PersistentVolumeClaim) bool {
	return func(claim *corev1.PersistentVolumeClaim) bool {
		return claim.Annotations[volumehelpers.AnnSelectedNode] == node
	}
}

// addClaims queues the claims without a volume that match.
func (c *Controller) addClaims(match func(*corev1.PersistentVolumeClaim) bool) {
	all, _ := c.claims.List(labels.Everything()) // reads a cache: no error
	for _, claim := range all {
		if claim.Spec.VolumeName == "" && match(claim) {
			c.Add(reconcile.KeyOf(claim))
		}
	}
}

func className(claim *corev1.PersistentVolumeClaim) string {
	return volumehelpers.GetPersistentVolumeClaimClass(claim)
}

// --- Reconcile ---

// Reconcile brings one claim or one volume a step closer to what it asks for.
func (c *Controller) Reconcile(ctx context.Context, key types.NamespacedName) error {
	if key.Namespace == "" {
		return c.reconcileVolume(ctx, key.Name)
	}
	return c.reconcileClaim(ctx, key)
}

func (c *Controller) reconcileClaim(ctx context.Context, key types.NamespacedName) error {
	claim, class, err := c.readClaim(key)
	if claim == nil || err != nil {
		return err
	}
	node, err := c.node(ctx, claim.Annotations[volumehelpers.AnnSelectedNode])
	if err != nil {
		return err
	}
	plan := decideClaim(claim, class, node)
	return c.carryOutClaim(ctx, claim, plan)
}

// readClaim returns a claim and its class, or nil if it is not for this
// controller or has its volume already.
func (c *Controller) readClaim(key types.NamespacedName) (*corev1.PersistentVolumeClaim, *storagev1.StorageClass, error) {
	claim, err := c.claims.PersistentVolumeClaims(key.Namespace).Get(key.Name)
	if err != nil {
		return nil, nil, ignoreNotFound(err)
	}
	class, err := c.classes.Get(className(claim))
	if err != nil {
		return nil, nil, ignoreNotFound(err)
	}
	if class.Provisioner != api.LocalVolumeProvisioner {
		return nil, nil, nil
	}
	_, err = c.volumes.Get(volumeName(claim))
	if !apierrors.IsNotFound(err) {
		return nil, nil, err // made before: the volume binder binds it
	}
	return claim, class, nil
}

// node returns a node, nil if it does not exist. One that was created a moment
// ago may be missing in the cache only, so it is asked for.
func (c *Controller) node(ctx context.Context, name string) (*corev1.Node, error) {
	if name == "" {
		return nil, nil
	}
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		node, err = c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	return node, nil
}

func (c *Controller) reconcileVolume(ctx context.Context, name string) error {
	pv, err := c.volumes.Get(name)
	if err != nil || !isOurs(pv) {
		return ignoreNotFound(err)
	}
	nodeExists := true
	if pv.DeletionTimestamp != nil {
		node, err := c.node(ctx, pv.Labels[api.NodeLabel])
		if err != nil {
			return err
		}
		nodeExists = node != nil
	}
	return c.carryOutVolume(ctx, pv, decideVolume(pv, nodeExists))
}

// --- Effects ---

func (c *Controller) carryOutClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, plan claimPlan) error {
	if plan.Refusal != "" {
		c.events.Warning(claim, reasonFailed, "%s", plan.Refusal)
	}
	if plan.Reschedule {
		return c.reschedule(ctx, claim)
	}
	if plan.Create == nil {
		return nil
	}
	_, err := c.client.CoreV1().PersistentVolumes().Create(ctx, plan.Create, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // by an earlier pass, that the cache does not show yet
	}
	if err != nil {
		return fmt.Errorf("make volume of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	c.events.Normal(claim, reasonProvisioned, "Volume %s is a directory of node %s", plan.Create.Name, plan.Create.Labels[api.NodeLabel])
	return nil
}

// reschedule takes the selected node off a claim, which tells the scheduler to
// choose again.
func (c *Controller) reschedule(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	updated := claim.DeepCopy()
	delete(updated.Annotations, volumehelpers.AnnSelectedNode)
	_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, updated, metav1.UpdateOptions{})
	return ignoreNotFound(err)
}

func (c *Controller) carryOutVolume(ctx context.Context, pv *corev1.PersistentVolume, plan volumePlan) error {
	var err error
	switch plan {
	case addFinalizer:
		err = c.setFinalizers(ctx, pv, append(slices.Clone(pv.Finalizers), api.LocalVolumeFinalizer))
	case dropFinalizer:
		err = c.setFinalizers(ctx, pv, slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == api.LocalVolumeFinalizer }))
	case deleteVolume:
		// Only as it was decided on: the policy may have become Retain.
		err = c.client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &pv.UID, ResourceVersion: &pv.ResourceVersion},
		})
	}
	if ignoreNotFound(err) != nil {
		return fmt.Errorf("%s: volume %s: %w", plan, pv.Name, err)
	}
	return nil
}

// setFinalizers fails with a conflict if the volume has changed.
func (c *Controller) setFinalizers(ctx context.Context, pv *corev1.PersistentVolume, finalizers []string) error {
	updated := pv.DeepCopy()
	updated.Finalizers = finalizers
	_, err := c.client.CoreV1().PersistentVolumes().Update(ctx, updated, metav1.UpdateOptions{})
	return err
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
