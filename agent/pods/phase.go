package pods

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
)

// setPhase moves the phase on. A terminal phase never changes; reason and
// message stay with the phase they explain.
func (f facts) setPhase(s *corev1.PodStatus, p plan, ended bool) {
	old := &f.pod.Status
	switch {
	case isTerminal(old.Phase):
		s.Phase = old.Phase
	case p.endReason != "" && f.still():
		s.Phase = corev1.PodFailed
	default:
		s.Phase = f.phase(s, ended)
		if ended && !isTerminal(s.Phase) {
			s.Phase = corev1.PodFailed
		}
		if isTerminal(s.Phase) && !f.still() {
			s.Phase = cmp.Or(old.Phase, corev1.PodPending)
		}
	}
	if s.Phase != old.Phase {
		s.Reason, s.Message = p.endReason, p.endMessage
	}
}

// still reports whether nothing of the pod runs or starts: a pod is not
// called failed or succeeded before.
func (f facts) still() bool { return len(f.observed.alive()) == 0 && !f.starting() }

// phase follows from the containers' statuses
// (kubernetes/pkg/kubelet/kubelet_pods.go, getPhase).
func (f facts) phase(s *corev1.PodStatus, ended bool) corev1.PodPhase {
	spec := &f.pod.Spec
	pendingInit, pendingSidecar := 0, 0
	var n counts
	for i := range spec.InitContainers {
		c, st := &spec.InitContainers[i], &s.InitContainerStatuses[i]
		if isSidecar(c) {
			pendingSidecar += n.sidecar(st)
			continue
		}
		exit, has := exitOf(st)
		if !has {
			pendingInit++
		} else if exit != 0 && !restartsAfter(spec, c, exit) {
			return corev1.PodFailed
		}
	}
	for i := range spec.Containers {
		n.app(spec, &spec.Containers[i], statusOf(s, spec.Containers[i].Name))
	}
	switch {
	case pendingInit > 0 || pendingSidecar > 0 && !f.appHasStarted() || n.waiting > 0:
		return corev1.PodPending
	case n.running > 0:
		return corev1.PodRunning
	case n.stopped == 0:
		return corev1.PodPending
	case !ended && n.stopped != n.final:
		return corev1.PodRunning // some are about to restart
	case n.stopped == n.succeeded:
		return corev1.PodSucceeded
	default:
		return corev1.PodFailed
	}
}

// counts of sidecars and app containers by what they do.
type counts struct{ waiting, running, stopped, final, succeeded int }

func (n *counts) sidecar(st *corev1.ContainerStatus) (pending int) {
	switch {
	case st.State.Running != nil:
		n.running++
		if st.Started == nil || !*st.Started {
			return 1
		}
	case st.State.Waiting != nil && st.LastTerminationState.Terminated == nil:
		n.waiting++
		return 1
	}
	return 0
}

func (n *counts) app(spec *corev1.PodSpec, c *corev1.Container, st *corev1.ContainerStatus) {
	if st.State.Running != nil {
		n.running++
		return
	}
	exit, has := exitOf(st)
	if !has {
		n.waiting++
		return
	}
	n.stopped++
	if !restartsAfter(spec, c, exit) {
		n.final++
	}
	if st.State.Terminated != nil && exit == 0 {
		n.succeeded++
	}
}

// exitOf is the exit code of a container that has ended and is not running
// again.
func exitOf(st *corev1.ContainerStatus) (code int32, has bool) {
	switch {
	case st.State.Terminated != nil:
		return st.State.Terminated.ExitCode, true
	case st.State.Waiting != nil && st.LastTerminationState.Terminated != nil:
		return st.LastTerminationState.Terminated.ExitCode, true
	}
	return 0, false
}
