package daemonset

import (
	appsv1 "k8s.io/api/apps/v1"

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

// withCollision counts another collision of a revision's name.
func withCollision(status appsv1.DaemonSetStatus) appsv1.DaemonSetStatus {
	collisions := new(int32(1))
	if status.CollisionCount != nil {
		*collisions += *status.CollisionCount
	}
	status.CollisionCount = collisions
	return status
}
