package pods

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/agent/probes"
)

// What runs beside or before the app: init containers, sidecars and ephemeral
// containers.

// decideInit plans for the init containers and reports whether the app may
// start: every one has exited 0 or, a sidecar, has started.
func (f facts) decideInit(p *plan, current *sandbox) bool {
	initialized := f.appHasStarted()
	for i := range f.pod.Spec.InitContainers {
		c := &f.pod.Spec.InitContainers[i]
		active := f.observed.active(c.Name)
		if isSidecar(c) {
			if !f.decideSidecar(p, c, current, active) && !initialized {
				return false
			}
			continue
		}
		if initialized || f.laterInitExists(i) {
			continue
		}
		if !f.decideOneInit(p, c, current, active) {
			return false
		}
	}
	return !p.ending
}

// appHasStarted reports whether an app container exists in the current
// sandbox, which proves that initialization is over.
func (f facts) appHasStarted() bool {
	for i := range f.pod.Spec.Containers {
		if f.observed.active(f.pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	return false
}

// laterInitExists reports whether a later init container was begun, which
// proves that the i-th is over even if the runtime has forgotten it.
func (f facts) laterInitExists(i int) bool {
	for _, later := range f.pod.Spec.InitContainers[i+1:] {
		if f.observed.active(later.Name) != nil {
			return true
		}
	}
	return false
}

func (f facts) decideOneInit(p *plan, c *corev1.Container, current *sandbox, active *container) (done bool) {
	switch {
	case active == nil || active.state == stateCreated:
		f.startContainer(p, c, current, active)
	case active.state == stateRunning:
	case active.state == stateUnknown:
		f.stop(p, active, f.grace(c, ""), fmt.Sprintf("Init container %s is in an unknown state", c.Name), true)
	case active.exitCode == 0:
		return true
	case restartsAfter(&f.pod.Spec, c, active.exitCode):
		f.startContainer(p, c, current, active)
	default:
		p.ending = true
		f.end(p)
	}
	return false
}

// decideSidecar keeps a sidecar running; it reports whether it has started.
func (f facts) decideSidecar(p *plan, c *corev1.Container, current *sandbox, active *container) (started bool) {
	switch {
	case active == nil || active.state == stateCreated || active.state == stateExited:
		f.startContainer(p, c, current, active)
		return false
	case active.state == stateUnknown:
		f.stop(p, active, f.grace(c, ""), fmt.Sprintf("Init container %s is in an unknown state", c.Name), true)
		return false
	}
	f.checkHealth(p, c, active)
	return !f.busy[startKey(c.Name)] && f.hasStarted(c, active.id)
}

// hasStarted reports whether a running container has passed its startup
// probe. Until the prober knows, what the API says of this container holds.
func (f facts) hasStarted(c *corev1.Container, id string) bool {
	if c.StartupProbe == nil {
		return true
	}
	if result, known := f.probe(id, probes.Startup); known {
		return result == probes.Success
	}
	status := statusOf(&f.pod.Status, c.Name)
	return status != nil && status.ContainerID == containerIDPrefix+id && status.Started != nil && *status.Started
}

// decideEphemeral starts ephemeral containers, each of them once.
func (f facts) decideEphemeral(p *plan, current *sandbox) {
	for i := range f.pod.Spec.EphemeralContainers {
		e := &f.pod.Spec.EphemeralContainers[i]
		if f.observed.latest(e.Name) != nil {
			continue
		}
		c := (*corev1.Container)(&e.EphemeralContainerCommon)
		target := ""
		if e.TargetContainerName != "" {
			running := f.observed.active(e.TargetContainerName)
			if running == nil || running.state != stateRunning {
				p.waiting[e.Name] = waiting{reasonCreateConfigError, fmt.Sprintf("target container %q is not running", e.TargetContainerName)}
				continue
			}
			target = running.id
		}
		before := len(p.start)
		f.startContainer(p, c, current, nil)
		if len(p.start) > before {
			p.start[before].target, p.start[before].restartCount = target, 0
		}
	}
}
