package replicaset

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/controlplane/reconcile"
)

// set is a ReplicaSet, or a ReplicationController read as one. It shares
// memory with the cache and must not be modified.
type set struct {
	*appsv1.ReplicaSet
	// object is what the API calls it; events refer to it.
	object runtime.Object
}

// kind gives access to the sets of one API kind.
type kind interface {
	gvk() schema.GroupVersionKind
	informer() cache.SharedIndexInformer
	store() reconcile.Store
	// get reads from the cache, live from the API server.
	get(key types.NamespacedName) (set, error)
	live(ctx context.Context, key types.NamespacedName) (metav1.Object, error)
	// matching returns the keys of the sets that select labels.
	matching(namespace string, labels labels.Set) []types.NamespacedName
	// siblings returns the UIDs of all sets with the same controller as s, s included.
	siblings(s set) []types.UID
	// countsTerminating reports whether the status has terminatingReplicas.
	countsTerminating() bool
	// updateStatus returns what it wrote.
	updateStatus(ctx context.Context, s set, status appsv1.ReplicaSetStatus) (metav1.Object, error)
}

type replicaSets struct {
	client       kubernetes.Interface
	shared       cache.SharedIndexInformer
	lister       appslisters.ReplicaSetLister
	byController reconcile.ByController[*appsv1.ReplicaSet]
}

func newReplicaSets(env reconcile.Env) (replicaSets, error) {
	sets := env.Informers.Apps().V1().ReplicaSets()
	index, err := reconcile.NewByController[*appsv1.ReplicaSet](sets.Informer())
	return replicaSets{env.Client, sets.Informer(), sets.Lister(), index}, err
}

func (k replicaSets) gvk() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
}
func (k replicaSets) informer() cache.SharedIndexInformer { return k.shared }
func (k replicaSets) store() reconcile.Store              { return k.shared.GetStore() }
func (k replicaSets) countsTerminating() bool             { return true }

func (k replicaSets) get(key types.NamespacedName) (set, error) {
	rs, err := k.lister.ReplicaSets(key.Namespace).Get(key.Name)
	return set{rs, rs}, err
}

func (k replicaSets) live(ctx context.Context, key types.NamespacedName) (metav1.Object, error) {
	return k.client.AppsV1().ReplicaSets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
}

func (k replicaSets) matching(namespace string, podLabels labels.Set) []types.NamespacedName {
	all, _ := k.lister.ReplicaSets(namespace).List(labels.Everything()) // reads a cache: no error
	return reconcile.MayAdopt(all, func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector }, podLabels)
}

func (k replicaSets) siblings(s set) []types.UID {
	controller := metav1.GetControllerOfNoCopy(s)
	if controller == nil {
		return []types.UID{s.UID}
	}
	var uids []types.UID
	for _, rs := range k.byController.Of(controller.UID) {
		uids = append(uids, rs.UID)
	}
	return uids
}

func (k replicaSets) updateStatus(ctx context.Context, s set, status appsv1.ReplicaSetStatus) (metav1.Object, error) {
	updated := *s.ReplicaSet
	updated.Status = status
	return k.client.AppsV1().ReplicaSets(s.Namespace).UpdateStatus(ctx, &updated, metav1.UpdateOptions{})
}

type replicationControllers struct {
	client kubernetes.Interface
	shared cache.SharedIndexInformer
	lister corelisters.ReplicationControllerLister
}

func newReplicationControllers(env reconcile.Env) replicationControllers {
	controllers := env.Informers.Core().V1().ReplicationControllers()
	return replicationControllers{env.Client, controllers.Informer(), controllers.Lister()}
}

func (k replicationControllers) gvk() schema.GroupVersionKind {
	return corev1.SchemeGroupVersion.WithKind("ReplicationController")
}
func (k replicationControllers) informer() cache.SharedIndexInformer { return k.shared }
func (k replicationControllers) store() reconcile.Store              { return k.shared.GetStore() }
func (k replicationControllers) countsTerminating() bool             { return false }

func (k replicationControllers) get(key types.NamespacedName) (set, error) {
	rc, err := k.lister.ReplicationControllers(key.Namespace).Get(key.Name)
	if err != nil {
		return set{}, err
	}
	return set{asReplicaSet(rc), rc}, nil
}

func (k replicationControllers) live(ctx context.Context, key types.NamespacedName) (metav1.Object, error) {
	return k.client.CoreV1().ReplicationControllers(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
}

func (k replicationControllers) matching(namespace string, podLabels labels.Set) []types.NamespacedName {
	all, _ := k.lister.ReplicationControllers(namespace).List(labels.Everything()) // reads a cache: no error
	var keys []types.NamespacedName
	for _, rc := range all {
		if len(rc.Spec.Selector) > 0 && labels.SelectorFromSet(rc.Spec.Selector).Matches(podLabels) {
			keys = append(keys, reconcile.KeyOf(rc))
		}
	}
	return keys
}

// siblings is s alone: nothing controls ReplicationControllers.
func (k replicationControllers) siblings(s set) []types.UID { return []types.UID{s.UID} }

func (k replicationControllers) updateStatus(ctx context.Context, s set, status appsv1.ReplicaSetStatus) (metav1.Object, error) {
	rc, ok := s.object.(*corev1.ReplicationController)
	if !ok {
		return nil, fmt.Errorf("%s is a %T, not a ReplicationController", s.Name, s.object)
	}
	updated := *rc
	updated.Status = asReplicationStatus(status)
	return k.client.CoreV1().ReplicationControllers(s.Namespace).UpdateStatus(ctx, &updated, metav1.UpdateOptions{})
}

// asReplicaSet reads rc as a ReplicaSet.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        rc.Spec.Replicas,
			MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector:        &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas:             rc.Status.Replicas,
			FullyLabeledReplicas: rc.Status.FullyLabeledReplicas,
			ReadyReplicas:        rc.Status.ReadyReplicas,
			AvailableReplicas:    rc.Status.AvailableReplicas,
			ObservedGeneration:   rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type:               appsv1.ReplicaSetConditionType(c.Type),
			Status:             c.Status,
			LastTransitionTime: c.LastTransitionTime,
			Reason:             c.Reason,
			Message:            c.Message,
		})
	}
	return rs
}

func asReplicationStatus(status appsv1.ReplicaSetStatus) corev1.ReplicationControllerStatus {
	result := corev1.ReplicationControllerStatus{
		Replicas:             status.Replicas,
		FullyLabeledReplicas: status.FullyLabeledReplicas,
		ReadyReplicas:        status.ReadyReplicas,
		AvailableReplicas:    status.AvailableReplicas,
		ObservedGeneration:   status.ObservedGeneration,
	}
	for _, c := range status.Conditions {
		result.Conditions = append(result.Conditions, corev1.ReplicationControllerCondition{
			Type:               corev1.ReplicationControllerConditionType(c.Type),
			Status:             c.Status,
			LastTransitionTime: c.LastTransitionTime,
			Reason:             c.Reason,
			Message:            c.Message,
		})
	}
	return result
}
