package pods

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
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
		if m.cfg.Pressure != nil {
			if r := refusedUnderPressure(pod, m.cfg.Pressure); r != nil {
				return r
			}
		}
		// Without its Node object the agent cannot judge; the scheduler did.
		if self, err := m.nodes.Get(m.cfg.NodeName); err == nil {
			if r := fits(pod, self, m.admitted, m.cfg.MaxPods); r != nil {
				return r
			}
		}
	} else {
		pod = grantedBefore(pod)
	}
	m.admitted[pod.UID] = pod
	return nil
}

// countStarted counts what an agent before has taken, before any pod is judged
// beside it.
func (m *Manager) countStarted(pods []*corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pod := range pods {
		if pod.Status.StartTime != nil && !isTerminal(pod.Status.Phase) && pod.DeletionTimestamp == nil {
			m.admitted[pod.UID] = grantedBefore(pod)
		}
	}
}

// release stops counting a pod.
func (m *Manager) release(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.admitted, uid)
	delete(m.deferred, uid)
	m.retryDeferred()
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
		return (&shortage{corev1.ResourcePods, 1, int64(len(others)), capacity}).rejection()
	}
	if short := lacks(pod, self, others); short != nil {
		return short.rejection()
	}
	return nil
}

// shortage is what a node lacks for a pod; CPU is in thousandths.
type shortage struct {
	name                   corev1.ResourceName
	wanted, used, capacity int64
}

func (s *shortage) String() string {
	return fmt.Sprintf("%s, requested: %d, used: %d, capacity: %d", s.name, s.wanted, s.used, s.capacity)
}

func (s *shortage) rejection() *rejection {
	return &rejection{"OutOf" + string(s.name), "Pod was rejected: Node didn't have enough resource: " + s.String()}
}

// lacks returns the first resource, by name, that a node has too little of
// for a pod beside others, nil if there is none. The pod itself, with what it
// was granted before, may be among the others.
func lacks(pod *corev1.Pod, self *corev1.Node, others map[types.UID]*corev1.Pod) *shortage {
	options := resourcehelper.PodResourcesOptions{}
	requests := resourcehelper.PodRequests(pod, options)
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		wanted := requests[name]
		if wanted.IsZero() {
			continue
		}
		used := wanted.DeepCopy()
		used.Sub(wanted)
		for uid, other := range others {
			if uid != pod.UID {
				used.Add(resourcehelper.PodRequests(other, options)[name])
			}
		}
		allocatable := self.Status.Allocatable[name]
		total := used.DeepCopy()
		total.Add(wanted)
		if total.Cmp(allocatable) > 0 {
			return &shortage{name, inUnits(name, wanted), inUnits(name, used), inUnits(name, allocatable)}
		}
	}
	return nil
}

// inUnits is a quantity as messages have it: thousandths of CPUs, else whole.
func inUnits(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
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
