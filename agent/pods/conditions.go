package pods

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// setConditions replaces the conditions that belong to the node and keeps all
// others. A condition's time changes only with its status.
func (f facts) setConditions(s *corev1.PodStatus) {
	containersReady := f.containersReady(s)
	f.set(s, f.readyToStart())
	f.set(s, f.initialized(s))
	f.set(s, f.ready(s, containersReady))
	f.set(s, containersReady)
	f.set(s, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
	if f.evicted != "" {
		f.set(s, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
			Reason: corev1.PodReasonTerminationByKubelet, Message: f.evicted})
	}
}

func (f facts) set(s *corev1.PodStatus, c corev1.PodCondition) {
	c.ObservedGeneration = f.pod.Generation
	c.LastTransitionTime = *seconds(f.now)
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}

func (f facts) readyToStart() corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}
	if f.observed.current() == nil {
		c.Status = corev1.ConditionFalse
	}
	return c
}

func (f facts) initialized(s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		if len(f.pod.Spec.InitContainers) > 0 {
			c.Reason = reasonPodCompleted
		}
		return c
	}
	if f.everStarted(s) {
		return c
	}
	var incomplete []string
	for i := range s.InitContainerStatuses {
		st, spec := &s.InitContainerStatuses[i], &f.pod.Spec.InitContainers[i]
		done := st.Ready
		if isSidecar(spec) {
			done = st.Started != nil && *st.Started
		}
		if !done {
			incomplete = append(incomplete, st.Name)
		}
	}
	if len(incomplete) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, reasonContainersNotInit
		c.Message = fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return c
}

func (f facts) containersReady(s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}
	var unready []string
	for i := range f.pod.Spec.InitContainers {
		if isSidecar(&f.pod.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			unready = append(unready, s.InitContainerStatuses[i].Name)
		}
	}
	for i := range f.pod.Spec.Containers {
		if name := f.pod.Spec.Containers[i].Name; !statusOf(s, name).Ready {
			unready = append(unready, name)
		}
	}
	switch {
	case s.Phase == corev1.PodSucceeded:
		c.Status, c.Reason = corev1.ConditionFalse, reasonPodCompleted
	case s.Phase == corev1.PodFailed:
		c.Status, c.Reason = corev1.ConditionFalse, reasonPodFailed
	case len(unready) > 0:
		c.Status, c.Reason = corev1.ConditionFalse, reasonContainersNotReady
		c.Message = fmt.Sprintf("containers with unready status: %s", unready)
	}
	return c
}

// ready adds the readiness gates (KEP-580) to containersReady.
func (f facts) ready(s *corev1.PodStatus, containersReady corev1.PodCondition) corev1.PodCondition {
	c := containersReady
	c.Type = corev1.PodReady
	if c.Status != corev1.ConditionTrue {
		return c
	}
	var missing []string
	for _, gate := range f.pod.Spec.ReadinessGates {
		switch condition := conditionOf(s, gate.ConditionType); {
		case condition == nil:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case condition.Status != corev1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, condition.Status))
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reasonReadinessGatesNotReady, strings.Join(missing, ", ")
	}
	return c
}

func conditionOf(s *corev1.PodStatus, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}
