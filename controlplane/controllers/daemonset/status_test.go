package daemonset

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"

	"weft.dev/weft/controlplane/reconcile"
)

func TestWhatMayWaitForOthersToBeWritten(t *testing.T) {
	status := func(desired, updated, available, misscheduled int32) appsv1.DaemonSetStatus {
		return appsv1.DaemonSetStatus{
			ObservedGeneration: 2, DesiredNumberScheduled: desired, UpdatedNumberScheduled: updated,
			NumberAvailable: available, NumberUnavailable: desired - available, NumberMisscheduled: misscheduled,
		}
	}
	newSpec := status(3, 1, 1, 0)
	newSpec.ObservedGeneration = 3
	cases := []struct {
		name     string
		old, new appsv1.DaemonSetStatus
		want     reconcile.News
	}{
		{"nothing has changed", status(3, 3, 3, 0), status(3, 3, 3, 0), reconcile.NoNews},
		{"the second of three nodes has its pod", status(3, 1, 1, 0), status(3, 2, 2, 0), reconcile.Counts},
		{"the last node has its pod", status(3, 3, 2, 0), status(3, 3, 3, 0), reconcile.Urgent},
		{"a node loses its pod", status(3, 3, 3, 0), status(3, 3, 2, 0), reconcile.Urgent},
		{"a pod has to leave a node", status(3, 3, 3, 0), status(2, 2, 2, 1), reconcile.Urgent},
		{"a new spec is seen", status(3, 1, 1, 0), newSpec, reconcile.Urgent},
		{"a revision's name is taken", status(3, 1, 1, 0), withCollision(status(3, 1, 1, 0)), reconcile.Urgent},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := newsOf(&appsv1.DaemonSet{Status: c.old}, c.new); got != c.want {
				t.Errorf("news: %v, want %v", got, c.want)
			}
		})
	}
}
