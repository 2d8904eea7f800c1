package pods

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

// A pod's spec says what resources it should have, its allocation what the
// node has granted it. They differ while a resize has to wait (KEP-1287).
// The allocation is what everything here works with; it is in the API as
// status.allocatedResources, so that a restarted agent knows it.

// allocate returns the pod with the resources that it is granted, and why
// they are not those of its spec, if they are not.
func (m *Manager) allocate(pod *corev1.Pod) (*corev1.Pod, *waiting) {
	m.mu.Lock()
	defer m.mu.Unlock()
	granted := m.admitted[pod.UID]
	if granted == nil {
		return pod, nil
	}
	delete(m.deferred, pod.UID)
	if !sameResources(granted, pod) {
		// Without its Node object the agent cannot judge.
		self, err := m.nodes.Get(m.cfg.NodeName)
		if err != nil {
			return withResourcesOf(granted, pod), &waiting{corev1.PodReasonDeferred, "the node is not known yet"}
		}
		if why := resizable(pod, self, m.admitted); why != nil {
			m.deferred[pod.UID] = true
			pod = withResourcesOf(granted, pod)
			m.admitted[pod.UID] = pod
			return pod, why
		}
		m.retryDeferred()
	}
	m.admitted[pod.UID] = pod
	return pod, nil
}

// retryDeferred wakes the pods whose resize waits for room; m.mu is held.
func (m *Manager) retryDeferred() {
	for uid := range m.deferred {
		if w := m.workers[uid]; w != nil {
			w.wakeUp()
		}
	}
}

// resizable says why a running pod cannot have the resources of its spec: it
// never can on this node (Infeasible), or not beside the others (Deferred).
// It is pure.
func resizable(pod *corev1.Pod, self *corev1.Node, others map[types.UID]*corev1.Pod) *waiting {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		wanted, allocatable := requests[name], self.Status.Allocatable[name]
		if wanted.Cmp(allocatable) > 0 {
			return &waiting{corev1.PodReasonInfeasible, fmt.Sprintf(
				"Node didn't have enough capacity: %s, requested: %d, capacity: %d", name, inUnits(name, wanted), inUnits(name, allocatable))}
		}
	}
	if short := lacks(pod, self, others); short != nil {
		return &waiting{corev1.PodReasonDeferred, "Node didn't have enough resource: " + short.String()}
	}
	return nil
}

// sameResources reports whether two versions of a pod ask for the same.
func sameResources(a, b *corev1.Pod) bool {
	if !apiequality.Semantic.DeepEqual(a.Spec.Resources, b.Spec.Resources) {
		return false
	}
	same := true
	everyContainer(a, func(c *corev1.Container) {
		other := containerSpec(b, c.Name)
		same = same && (other == nil || apiequality.Semantic.DeepEqual(c.Resources, other.Resources))
	})
	return same
}

// withResourcesOf is pod with the resources of granted.
func withResourcesOf(granted, pod *corev1.Pod) *corev1.Pod {
	out := pod.DeepCopy()
	out.Spec.Resources = granted.Spec.Resources.DeepCopy()
	everyContainer(out, func(c *corev1.Container) {
		if from := containerSpec(granted, c.Name); from != nil {
			c.Resources = *from.Resources.DeepCopy()
		}
	})
	return out
}

// grantedBefore is pod with the resources that its status says it was
// granted by an agent before.
func grantedBefore(pod *corev1.Pod) *corev1.Pod {
	out := pod.DeepCopy()
	if s := &pod.Status; s.Resources != nil && out.Spec.Resources != nil {
		out.Spec.Resources.Requests, out.Spec.Resources.Limits = s.AllocatedResources, s.Resources.Limits
	}
	everyContainer(out, func(c *corev1.Container) {
		if s := statusOf(&pod.Status, c.Name); s != nil && s.Resources != nil && s.ContainerID != "" {
			c.Resources.Requests, c.Resources.Limits = s.AllocatedResources, s.Resources.Limits
		}
	})
	return out
}
