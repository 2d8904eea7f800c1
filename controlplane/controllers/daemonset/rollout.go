package daemonset

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// limits are maxSurge and maxUnavailable as numbers of nodes.
type limits struct{ surge, unavailable int }

// limitsOf takes percentages of the nodes that should run a pod, and rounds
// both up. If both come out as zero the update could never move, so one node
// may be unavailable.
func limitsOf(ds *appsv1.DaemonSet, desired int) limits {
	update := ds.Spec.UpdateStrategy.RollingUpdate
	if ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || update == nil {
		return limits{}
	}
	// The API server has refused what cannot be parsed.
	surge, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(update.MaxSurge, intstr.FromInt32(0)), desired, true)
	unavailable, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(update.MaxUnavailable, intstr.FromInt32(0)), desired, true)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return limits{surge, unavailable}
}

// allowsSurge reports whether a node may have two pods during an update.
func allowsSurge(ds *appsv1.DaemonSet) bool { return limitsOf(ds, 1).surge > 0 }

// roll moves a rolling update on, as far as its limits allow at this moment.
// It is called when placement had nothing to do.
func (st *step) roll() {
	limits := limitsOf(st.ds, int(st.plan.Status.DesiredNumberScheduled))
	if allowsSurge(st.ds) {
		st.rollBySurge(limits.surge)
	} else {
		st.rollInPlace(limits.unavailable)
	}
}

// versions returns the node's old and new pod that nobody has asked to end.
// ok is false if there are several of one kind, which placement will settle.
func (st *step) versions(n node) (old, updated *corev1.Pod, ok bool) {
	for _, pod := range n.pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		slot := &old
		if st.isUpdated(pod) {
			slot = &updated
		}
		if *slot != nil {
			return nil, nil, false
		}
		*slot = pod
	}
	return old, updated, true
}

// rollInPlace deletes old pods; placement makes the new ones when they are
// gone. Old pods that do not work anyway go at once, the others as long as no
// more than limit nodes are without a pod that works.
func (st *step) rollInPlace(limit int) {
	unavailable := 0
	var candidates []*corev1.Pod
	for _, n := range st.perNode {
		if !n.exists || !n.shouldRun && len(n.pods) == 0 {
			continue
		}
		old, updated, ok := st.versions(n)
		switch {
		case !ok, (old == nil) == (updated == nil):
			unavailable++ // in between, or to be settled
		case updated != nil && !st.isAvailable(updated):
			unavailable++
		case updated != nil:
		case !st.isAvailable(old):
			unavailable++
			st.delete(old)
		default:
			candidates = append(candidates, old)
		}
	}
	for _, pod := range candidates[:between(limit-unavailable, len(candidates))] {
		st.delete(pod)
	}
}

// rollBySurge makes new pods beside old ones; placement deletes an old pod
// when its successor is available. Nodes whose old pod does not work get a new
// one at once, the others as long as no more than limit nodes wait for theirs.
// On nodes that pods may stay on but should not run on, old pods go without
// successor: at once if they do not work, else when there are enough others
// for all nodes that should run one.
func (st *step) rollBySurge(limit int) {
	surging, available := 0, 0
	var candidates []node
	var leaving []*corev1.Pod
	for _, n := range st.perNode {
		if !n.exists {
			continue
		}
		old, updated, ok := st.versions(n)
		if !ok {
			surging++ // to be settled
			continue
		}
		if old != nil && st.isAvailable(old) || old == nil && updated != nil && st.isAvailable(updated) {
			available++
		}
		switch {
		case old == nil, updated != nil && st.isAvailable(updated):
		case updated != nil:
			surging++
		case !n.shouldRun && !st.isAvailable(old):
			st.delete(old)
		case !n.shouldRun:
			leaving = append(leaving, old)
		case !st.isAvailable(old):
			st.create(n)
		default:
			candidates = append(candidates, n)
		}
	}
	for _, pod := range leaving[:between(available-int(st.plan.Status.DesiredNumberScheduled), len(leaving))] {
		st.delete(pod)
	}
	for _, n := range candidates[:between(limit-surging, len(candidates))] {
		st.create(n)
	}
}

// between returns n, but at least 0 and at most most.
func between(n, most int) int { return max(0, min(n, most)) }
