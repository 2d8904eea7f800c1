package daemonset

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/ptr"

	"weft.dev/weft/controlplane/reconcile"
)

// count fills in the status. Of several pods on a node the one with the best
// claim to stay counts. It also asks for a step when the next ready pod
// becomes available.
func (st *step) count() {
	status := appsv1.DaemonSetStatus{
		ObservedGeneration: st.ds.Generation,
		CollisionCount:     st.ds.Status.CollisionCount,
		Conditions:         st.ds.Status.Conditions,
	}
	for _, n := range st.perNode {
		for _, pod := range n.pods {
			if pod.DeletionTimestamp == nil {
				_, after := reconcile.IsAvailable(pod, st.ds.Spec.MinReadySeconds, st.now)
				st.again(after)
			}
		}
		switch {
		case !n.shouldRun && len(n.pods) > 0 && n.exists:
			status.NumberMisscheduled++
		case n.shouldRun:
			status.DesiredNumberScheduled++
		}
		if !n.shouldRun || len(n.pods) == 0 {
			continue
		}
		pod := n.pods[0]
		status.CurrentNumberScheduled++
		if reconcile.IsReady(pod) {
			status.NumberReady++
		}
		if st.isAvailable(pod) {
			status.NumberAvailable++
		}
		if st.isUpdated(pod) {
			status.UpdatedNumberScheduled++
		}
	}
	status.NumberUnavailable = status.DesiredNumberScheduled - status.NumberAvailable
	st.plan.Status = status
}

// newsOf says whether ds's new status may wait for others to share its write:
// while pods are on their way to all nodes, and come or go one by one.
func newsOf(ds *appsv1.DaemonSet, status appsv1.DaemonSetStatus) reconcile.News {
	old := ds.Status
	atGoal := func(s appsv1.DaemonSetStatus) bool {
		return s.NumberUnavailable == 0 && s.NumberMisscheduled == 0 && s.UpdatedNumberScheduled == s.DesiredNumberScheduled
	}
	switch {
	case equality.Semantic.DeepEqual(old, status):
		return reconcile.NoNews
	case old.ObservedGeneration != status.ObservedGeneration, !ptr.Equal(old.CollisionCount, status.CollisionCount),
		atGoal(old) || atGoal(status):
		return reconcile.Urgent
	}
	return reconcile.Counts
}

// withCollision counts another collision of a revision's name.
func withCollision(status appsv1.DaemonSetStatus) appsv1.DaemonSetStatus {
	status.CollisionCount = new(ptr.Deref(status.CollisionCount, 0) + 1)
	return status
}
