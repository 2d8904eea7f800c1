package replicaset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/controlplane/reconcile"
)

// surplus picks the n active pods that are the least loss. It follows
// https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-down-a-replicaset
// and KEP-2185; the first rule that tells two pods apart decides:
//
//  1. without a node before with one
//  2. Pending before Unknown before Running
//  3. not ready before ready
//  4. lower controller.kubernetes.io/pod-deletion-cost first
//  5. more siblings on the same node first
//  6. ready for a shorter time first, in powers of two
//  7. more restarts first, then more restarts of sidecars
//  8. younger first, in powers of two
//
// Pods in the same power of two are in the order of their UIDs, which is
// random but the same every time.
func surplus(active, siblings []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	ranked := rank(active, siblings, now)
	slices.SortStableFunc(ranked, compareLoss)
	picked := make([]*corev1.Pod, 0, n)
	for _, r := range ranked[:min(n, len(ranked))] {
		picked = append(picked, r.pod)
	}
	return picked
}

// loss is what counts when a pod is to be deleted; smaller goes first.
type loss struct {
	pod             *corev1.Pod
	assigned        int
	phase           int
	ready           int
	cost            int
	neighbours      int
	readyFor        int // log₂
	restarts        int
	sidecarRestarts int
	age             int // log₂
}

func rank(active, siblings []*corev1.Pod, now time.Time) []loss {
	onNode := map[string]int{}
	for _, pod := range siblings {
		if reconcile.IsActive(pod) {
			onNode[pod.Spec.NodeName]++
		}
	}
	ranked := make([]loss, 0, len(active))
	for _, pod := range active {
		since, ready := reconcile.ReadySince(pod)
		restarts, sidecarRestarts := mostRestarts(pod)
		l := loss{
			pod:             pod,
			phase:           phaseOrder(pod.Status.Phase),
			cost:            deletionCost(pod),
			neighbours:      onNode[pod.Spec.NodeName],
			restarts:        restarts,
			sidecarRestarts: sidecarRestarts,
			age:             powerOfTwo(pod.CreationTimestamp.Time, now),
		}
		if pod.Spec.NodeName != "" {
			l.assigned = 1
		}
		if ready {
			l.ready, l.readyFor = 1, powerOfTwo(since, now)
		}
		ranked = append(ranked, l)
	}
	return ranked
}

func compareLoss(a, b loss) int {
	return cmp.Or(
		cmp.Compare(a.assigned, b.assigned),
		cmp.Compare(a.phase, b.phase),
		cmp.Compare(a.ready, b.ready),
		cmp.Compare(a.cost, b.cost),
		cmp.Compare(b.neighbours, a.neighbours),
		cmp.Compare(a.readyFor, b.readyFor),
		cmp.Compare(b.restarts, a.restarts),
		cmp.Compare(b.sidecarRestarts, a.sidecarRestarts),
		cmp.Compare(a.age, b.age),
		cmp.Compare(a.pod.UID, b.pod.UID),
	)
}

func phaseOrder(phase corev1.PodPhase) int {
	switch phase {
	case corev1.PodUnknown:
		return 1
	case corev1.PodRunning:
		return 2
	default:
		return 0
	}
}

// deletionCost is 0 if the annotation is missing or not a number.
func deletionCost(pod *corev1.Pod) int {
	cost, err := strconv.ParseInt(pod.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int(cost)
}

// mostRestarts returns the restarts of the container, and of the sidecar, that
// restarted most.
func mostRestarts(pod *corev1.Pod) (container, sidecar int) {
	for _, status := range pod.Status.ContainerStatuses {
		container = max(container, int(status.RestartCount))
	}
	isSidecar := map[string]bool{}
	for _, c := range pod.Spec.InitContainers {
		isSidecar[c.Name] = c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	for _, status := range pod.Status.InitContainerStatuses {
		if isSidecar[status.Name] {
			sidecar = max(sidecar, int(status.RestartCount))
		}
	}
	return container, sidecar
}

// powerOfTwo returns log₂ of the nanoseconds since then, rounded down, or -1 if
// then is unknown or not past.
func powerOfTwo(then, now time.Time) int {
	passed := now.Sub(then)
	if then.IsZero() || passed <= 0 {
		return -1
	}
	return int(math.Log2(float64(passed)))
}
