package statefulset

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"

	"weft.dev/weft/controlplane/reconcile"
)

func TestWhatMayWaitForOthersToBeWritten(t *testing.T) {
	status := func(replicas, updated, ready, available int32) appsv1.StatefulSetStatus {
		return appsv1.StatefulSetStatus{
			ObservedGeneration: 2, CurrentRevision: "db-1", UpdateRevision: "db-1",
			Replicas: replicas, UpdatedReplicas: updated, ReadyReplicas: ready, AvailableReplicas: available,
		}
	}
	with := func(s appsv1.StatefulSetStatus, change func(*appsv1.StatefulSetStatus)) appsv1.StatefulSetStatus {
		change(&s)
		return s
	}
	cases := []struct {
		name     string
		old, new appsv1.StatefulSetStatus
		want     reconcile.News
	}{
		{"nothing has changed", status(3, 3, 3, 3), status(3, 3, 3, 3), reconcile.NoNews},
		{"a pod is made", status(1, 1, 0, 0), status(2, 2, 0, 0), reconcile.Counts},
		{"the second of three pods becomes ready", status(3, 3, 1, 1), status(3, 3, 2, 1), reconcile.Counts},
		{"the last of three pods becomes available", status(3, 3, 3, 2), status(3, 3, 3, 3), reconcile.Urgent},
		{"one of three pods is no longer ready", status(3, 3, 3, 3), status(3, 3, 2, 2), reconcile.Urgent},
		{"a new spec is seen", status(1, 1, 1, 1), with(status(1, 1, 1, 1), func(s *appsv1.StatefulSetStatus) { s.ObservedGeneration = 3 }), reconcile.Urgent},
		{"a rollout begins", status(2, 2, 2, 2), with(status(2, 0, 2, 2), func(s *appsv1.StatefulSetStatus) { s.UpdateRevision = "db-2" }), reconcile.Urgent},
		{"a revision's name is taken", status(2, 2, 2, 2), with(status(2, 2, 2, 2), func(s *appsv1.StatefulSetStatus) { s.CollisionCount = new(int32(1)) }), reconcile.Urgent},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			set := &appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Replicas: new(int32(3))}, Status: c.old}
			if got := newsOf(set, c.new); got != c.want {
				t.Errorf("news: %v, want %v", got, c.want)
			}
		})
	}
}
