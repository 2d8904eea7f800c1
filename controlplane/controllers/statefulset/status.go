package statefulset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/ptr"

	"weft.dev/weft/controlplane/reconcile"
)

// status counts the pods. It also returns how long it takes until the next
// ready pod has been so for minReadySeconds; 0 if none will.
func (s *step) status() (appsv1.StatefulSetStatus, time.Duration) {
	var again time.Duration
	status := appsv1.StatefulSetStatus{
		ObservedGeneration: s.set.Generation,
		CurrentRevision:    s.current.name,
		UpdateRevision:     s.update.name,
		CollisionCount:     new(collisions(s.set)),
		Conditions:         s.set.Status.Conditions,
		Replicas:           int32(len(s.pods)),
	}
	for _, pod := range s.pods {
		if pod.DeletionTimestamp == nil {
			if revisionOf(pod) == s.current.name {
				status.CurrentReplicas++
			}
			if revisionOf(pod) == s.update.name {
				status.UpdatedReplicas++
			}
		}
		if pod.Status.Phase != corev1.PodRunning || !reconcile.IsReady(pod) {
			continue
		}
		status.ReadyReplicas++
		available, after := reconcile.IsAvailable(pod, s.set.Spec.MinReadySeconds, s.now)
		if available {
			status.AvailableReplicas++
		} else if again == 0 || after < again {
			again = after
		}
	}
	if want := *s.set.Spec.Replicas; status.Replicas == want && status.UpdatedReplicas == want && status.ReadyReplicas == want {
		// The rollout is complete.
		status.CurrentRevision, status.CurrentReplicas = status.UpdateRevision, status.UpdatedReplicas
	}
	return status, again
}

// collisions is how often a revision's name was taken by another.
func collisions(set *appsv1.StatefulSet) int32 { return ptr.Deref(set.Status.CollisionCount, 0) }

// newsOf says whether the set's new status may wait for others to share its
// write: while pods are on their way to what the spec asks for, and come or go
// one by one.
func newsOf(set *appsv1.StatefulSet, status appsv1.StatefulSetStatus) reconcile.News {
	old, want := set.Status, *set.Spec.Replicas
	atGoal := func(s appsv1.StatefulSetStatus) bool {
		return s.Replicas == want && s.UpdatedReplicas == want && s.AvailableReplicas == want
	}
	// What decides about the next step, or what users wait for, is no mere count.
	isDecisive := old.ObservedGeneration != status.ObservedGeneration || old.CurrentRevision != status.CurrentRevision ||
		old.UpdateRevision != status.UpdateRevision || !ptr.Equal(old.CollisionCount, status.CollisionCount)
	switch {
	case equality.Semantic.DeepEqual(old, status):
		return reconcile.NoNews
	case isDecisive, atGoal(old) || atGoal(status):
		return reconcile.Urgent
	}
	return reconcile.Counts
}
