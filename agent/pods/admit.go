package pods

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// rejection is why a node does not take a pod. Such a pod fails.
type rejection struct{ reason, message string }

// judge decides once whether the node takes the pod. What already started is
// never refused.
func (w *worker) judge(f *facts) {
	if w.judged {
		f.rejected = w.rejected
		return
	}
	w.judged = true
	started := f.pod.Status.StartTime != nil || len(f.observed.sandboxes) > 0
	if f.gone || f.pod.DeletionTimestamp != nil || isTerminal(f.pod.Status.Phase) {
		return
	}
	w.rejected = w.m.admit(f.pod, started)
	f.rejected = w.rejected
	if w.rejected != nil {
		w.log.Info("pod is rejected", "reason", w.rejected.reason, "message", w.rejected.message)
		w.warn(f.pod, nil, w.rejected.reason, w.rejected.message)
	}
}

// admit counts the pod among those of the node, or says why it cannot.
func (m *Manager) admit(pod *corev1.Pod, started bool) *rejection {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !started {
		if r := unsupported(pod); r != nil {
			return r
		}
		// Without its Node object the agent cannot judge; the scheduler did.
		if self, err := m.nodes.Get(m.cfg.NodeName); err == nil {
			if r := fits(pod, self, m.admitted, m.cfg.MaxPods); r != nil {
				return r
			}
		}
	}
	m.admitted[pod.UID] = pod
	return nil
}

// release stops counting a pod.
func (m *Manager) release(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.admitted, uid)
}

// fits reports why a pod cannot run beside others on a node, nil if it can
// (kubernetes/pkg/kubelet/lifecycle/predicate.go). It is pure.
func fits(pod *corev1.Pod, self *corev1.Node, others map[types.UID]*corev1.Pod, maxPods int) *rejection {
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	if matches, err := affinity.Match(self); err != nil || !matches {
		return &rejection{"NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	if r := fitsResources(pod, self, others, maxPods); r != nil {
		return r
	}
	return fitsPorts(pod, others)
}

func fitsResources(pod *corev1.Pod, self *corev1.Node, others map[types.UID]*corev1.Pod, maxPods int) *rejection {
	capacity := int64(maxPods)
	if pods, ok := self.Status.Allocatable[corev1.ResourcePods]; ok && maxPods == 0 {
		capacity = pods.Value()
	}
	if capacity > 0 && int64(len(others)) >= capacity {
		return outOf(corev1.ResourcePods, 1, int64(len(others)), capacity)
	}
	options := resourcehelper.PodResourcesOptions{}
	for name, wanted := range resourcehelper.PodRequests(pod, options) {
		if wanted.IsZero() {
			continue
		}
		used := wanted.DeepCopy()
		used.Sub(wanted)
		for _, other := range others {
			used.Add(resourcehelper.PodRequests(other, options)[name])
		}
		allocatable := self.Status.Allocatable[name]
		total := used.DeepCopy()
		total.Add(wanted)
		if total.Cmp(allocatable) > 0 {
			if name == corev1.ResourceCPU {
				return outOf(name, wanted.MilliValue(), used.MilliValue(), allocatable.MilliValue())
			}
			return outOf(name, wanted.Value(), used.Value(), allocatable.Value())
		}
	}
	return nil
}

func outOf(name corev1.ResourceName, wanted, used, capacity int64) *rejection {
	return &rejection{"OutOf" + string(name), fmt.Sprintf(
		"Pod was rejected: Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, wanted, used, capacity)}
}

// fitsPorts refuses host ports that another pod has.
func fitsPorts(pod *corev1.Pod, others map[types.UID]*corev1.Pod) *rejection {
	for _, wanted := range hostPorts(pod) {
		for _, other := range others {
			for _, taken := range hostPorts(other) {
				if wanted.HostPort == taken.HostPort && wanted.Protocol == taken.Protocol && sameHostIP(wanted.HostIP, taken.HostIP) {
					return &rejection{"NodePorts", fmt.Sprintf("Pod was rejected: Predicate NodePorts failed: host port %d/%s is taken by pod %s/%s",
						wanted.HostPort, wanted.Protocol, other.Namespace, other.Name)}
				}
			}
		}
	}
	return nil
}

func hostPorts(pod *corev1.Pod) []corev1.ContainerPort {
	var out []corev1.ContainerPort
	everyContainer(pod, func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort > 0 {
				out = append(out, port)
			}
		}
	})
	return out
}

func sameHostIP(a, b string) bool {
	isAny := func(s string) bool { return s == "" || s == "0.0.0.0" || s == "::" }
	return isAny(a) || isAny(b) || a == b
}
