package pods

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What a node does that runs out of memory or disk: it ends pods (agent/reclaim
// says which), and refuses those that it would have to end next.

// Evict ends a pod to free what the node is short of: it fails for the reason
// Evicted, its containers get next to no time. Pods that are ending or not
// known are left alone.
func (m *Manager) Evict(podUID types.UID, message string) {
	if w := m.worker(podUID); w != nil {
		w.evict(message)
	}
}

// evict has the pod end, and reports it once.
func (w *worker) evict(message string) {
	w.mu.Lock()
	pod, isNew := w.pod, w.evicted == "" && !w.gone && w.pod.DeletionTimestamp == nil && !isTerminal(w.pod.Status.Phase)
	if isNew {
		w.evicted = message
	}
	w.mu.Unlock()
	if isNew {
		w.warn(pod, nil, reasonEvicted, message)
		w.wakeUp()
	}
}

// refusedUnderPressure refuses pods that a node short of disk or memory would
// have to evict next (kubernetes/pkg/kubelet/eviction, Admit).
func refusedUnderPressure(pod *corev1.Pod, pressure func() (memory, disk bool)) *rejection {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= criticalSystem {
		return nil
	}
	memory, disk := pressure()
	refuse := func(condition corev1.NodeConditionType) *rejection {
		return &rejection{reasonEvicted, fmt.Sprintf("The node had condition: [%s]. ", condition)}
	}
	taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
	switch {
	case disk:
		return refuse(corev1.NodeDiskPressure)
	case memory && pod.Status.QOSClass == corev1.PodQOSBestEffort && !tolerates(pod, &taint):
		return refuse(corev1.NodeMemoryPressure)
	}
	return nil
}

func tolerates(pod *corev1.Pod, taint *corev1.Taint) bool {
	return slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
		return (t.Effect == "" || t.Effect == taint.Effect) && (t.Key == taint.Key && (t.Operator == corev1.TolerationOpExists || t.Value == taint.Value) ||
			t.Key == "" && t.Operator == corev1.TolerationOpExists)
	})
}
