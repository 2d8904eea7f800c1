package pods

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A pod ends when it is deleted, has run out of time, has failed by decree
// (eviction, refusal) or is done. The order of its end:
//
//	preStop, signal, wait, SIGKILL: app containers together, then sidecars in reverse
//	sandbox stopped, volumes unmounted, cgroup removed      (tear down)
//	final status, then the API object deleted if that was asked
//	containers, sandboxes and logs removed                   (erase)

// ends reports whether the pod's end has begun, with the reason and message
// of its status if they are new.
func (f facts) ends(p *plan) (reason, message string, ending bool) {
	pod := f.pod
	if f.rejected != nil {
		return f.rejected.reason, f.rejected.message, true
	}
	if f.gone || pod.DeletionTimestamp != nil || isTerminal(pod.Status.Phase) {
		return "", "", true
	}
	if f.evicted != "" {
		return reasonEvicted, f.evicted, true
	}
	if pod.Spec.ActiveDeadlineSeconds == nil || pod.Status.StartTime == nil {
		return "", "", false
	}
	deadline := pod.Status.StartTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second)
	if left := deadline.Sub(f.now); left > 0 {
		p.lookAgain(left)
		return "", "", false
	}
	return reasonDeadlineExceeded, "Pod was active on the node longer than the specified deadline", true
}

// end plans the next step of the pod's end.
func (f facts) end(p *plan) {
	if f.starting() {
		return // they are being cancelled or about to end; that wakes us
	}
	alive := f.observed.alive()
	if len(alive) > 0 {
		f.killInOrder(p, alive)
		return
	}
	switch {
	case !f.tornDown || f.observed.current() != nil:
		p.tearDown = f.may(p, opTearDown)
	case f.gone:
		p.erase = f.may(p, opErase)
	}
}

// starting reports whether something that starts is still under way.
func (f facts) starting() bool {
	for key := range f.busy {
		if isStart(key) {
			return true
		}
	}
	return false
}

// isStart reports whether an operation begins something of a pod.
func isStart(key string) bool {
	return key == opMount || key == opSandbox || strings.HasPrefix(key, startKey(""))
}

// killInOrder kills app and ephemeral containers and plain init containers at
// once; a sidecar only when they and the sidecars after it are gone.
func (f facts) killInOrder(p *plan, alive []container) {
	isAlive := func(name string) bool {
		return slices.ContainsFunc(alive, func(c container) bool { return c.name == name })
	}
	sidecarTurn := ""
	for _, c := range slices.Backward(f.pod.Spec.InitContainers) {
		if isSidecar(&c) && isAlive(c.Name) {
			sidecarTurn = c.Name
			break
		}
	}
	for _, c := range alive {
		if f.isSidecarName(c.name) && (c.name != sidecarTurn || f.othersAlive(alive)) {
			continue
		}
		grace := f.endGrace()
		if f.isSidecarName(c.name) && f.pod.DeletionTimestamp != nil {
			grace = max(minimumGrace, min(grace, f.pod.DeletionTimestamp.Sub(f.now)))
		}
		f.stop(p, &c, grace, fmt.Sprintf("Stopping container %s", c.name), false)
	}
}

func (f facts) isSidecarName(name string) bool {
	return slices.ContainsFunc(f.pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && isSidecar(&c)
	})
}

// othersAlive reports whether anything but sidecars is alive.
func (f facts) othersAlive(alive []container) bool {
	return slices.ContainsFunc(alive, func(c container) bool { return !f.isSidecarName(c.name) })
}

// endGrace is the grace of the pod as a whole.
func (f facts) endGrace() time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	switch {
	case f.evicted != "":
		seconds = 0
	case f.pod.DeletionGracePeriodSeconds != nil:
		seconds = *f.pod.DeletionGracePeriodSeconds
	case f.gone:
		seconds = 0
	case f.pod.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *f.pod.Spec.TerminationGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}
