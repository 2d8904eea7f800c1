package statefulset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

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
func collisions(set *appsv1.StatefulSet) int32 {
	if set.Status.CollisionCount == nil {
		return 0
	}
	return *set.Status.CollisionCount
}
