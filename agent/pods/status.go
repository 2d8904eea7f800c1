package pods

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/agent/probes"
)

// status computes what the API should say of the pod: f.pod.Status moved on
// to what is observed. It is pure. The rules are kubelet's
// (kubernetes/pkg/kubelet/kubelet_pods.go, status/generate.go).
func status(f facts, p plan, nodeIPs []netip.Addr) corev1.PodStatus {
	old := &f.pod.Status
	s := *old.DeepCopy()
	s.ObservedGeneration = f.pod.Generation
	if f.rejected != nil {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, f.rejected.reason, f.rejected.message
	}
	if isTerminal(s.Phase) && len(old.ContainerStatuses) == 0 && len(f.observed.containers) == 0 {
		return s // rejected, now or by an agent before: it never had containers
	}
	if s.StartTime == nil {
		s.StartTime = seconds(f.now)
	}
	s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses = nil, nil, nil
	fallback := f.notStarted()
	for i := range f.pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, f.containerStatus(&f.pod.Spec.InitContainers[i], p, fallback))
	}
	for i := range f.pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, f.containerStatus(&f.pod.Spec.Containers[i], p, fallback))
	}
	slices.SortFunc(s.ContainerStatuses, func(a, b corev1.ContainerStatus) int { return cmp.Compare(a.Name, b.Name) })
	for i := range f.pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&f.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, f.containerStatus(c, p, fallback))
	}
	f.repairInit(&s)
	ended := p.ending && f.tornDown
	if ended {
		f.settle(&s)
	}
	f.setPhase(&s, p, ended)
	f.setAddresses(&s, nodeIPs)
	f.setConditions(&s)
	f.setResize(&s, p)
	return s
}

func seconds(t time.Time) *metav1.Time {
	out := metav1.NewTime(t).Rfc3339Copy()
	return &out
}

// containerStatus is the status of one container, by its newest two instances.
func (f facts) containerStatus(c *corev1.Container, p plan, fallback string) corev1.ContainerStatus {
	old := statusOf(&f.pod.Status, c.Name)
	list := f.observed.containers[c.Name]
	if len(list) == 0 {
		return f.absentStatus(c, p, old, fallback)
	}
	if f.replacing(c) > 0 {
		return *old.DeepCopy()
	}
	out := f.instanceStatus(c, &list[0], old)
	if len(list) > 1 {
		out.LastTerminationState = f.instanceStatus(c, &list[1], old).State
	} else if old != nil {
		out.LastTerminationState = old.LastTerminationState
		if old.State.Terminated != nil && old.ContainerID != out.ContainerID {
			out.LastTerminationState = old.State
		}
	}
	if reason, waits := p.waiting[c.Name]; waits && !p.ending {
		if out.State.Terminated != nil {
			out.LastTerminationState = out.State
		}
		out.State = waitingState(cmp.Or(reason.reason, fallback), reason.message)
	}
	f.setHealth(c, &out)
	return out
}

// replaceGrace is how long a container whose definition changed may be
// without a running instance before its status says so. A replacement that
// takes no longer flips no condition, as in kubelet.
const replaceGrace = 2 * time.Second

// replacing is how long the status still hides that a container is between two
// instances because its definition changed; not positive if it does not.
func (f facts) replacing(c *corev1.Container) time.Duration {
	old, list := statusOf(&f.pod.Status, c.Name), f.observed.containers[c.Name]
	if old == nil || old.State.Running == nil || f.pod.DeletionTimestamp != nil || len(list) == 0 || list[0].state == stateRunning {
		return 0
	}
	for _, x := range list {
		if containerIDPrefix+x.id == old.ContainerID && x.state == stateExited && x.hash != hashOf(c) {
			return x.finished.Add(replaceGrace).Sub(f.now)
		}
	}
	return 0
}

// absentStatus is the status of a container that the runtime does not know.
func (f facts) absentStatus(c *corev1.Container, p plan, old *corev1.ContainerStatus, fallback string) corev1.ContainerStatus {
	reason := p.waiting[c.Name]
	out := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, Started: new(bool),
		State:        waitingState(cmp.Or(reason.reason, fallback), reason.message),
		VolumeMounts: volumeMountStatuses(c),
	}
	if old == nil {
		return out
	}
	if old.State.Terminated != nil {
		return *old.DeepCopy()
	}
	out.RestartCount, out.LastTerminationState = old.RestartCount, old.LastTerminationState
	if old.State.Running != nil && out.LastTerminationState.Terminated == nil {
		out.LastTerminationState.Terminated = lost("The container could not be located when the pod was deleted.  The container used to be Running")
	}
	return out
}

func waitingState(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

func lost(message string) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{Reason: reasonContainerStatusUnknown, Message: message, ExitCode: 137}
}

// instanceStatus is the status of one container instance.
func (f facts) instanceStatus(c *corev1.Container, x *container, old *corev1.ContainerStatus) corev1.ContainerStatus {
	out := corev1.ContainerStatus{
		Name: c.Name, Image: x.image, ImageID: x.imageRef,
		RestartCount: x.restartCount, ContainerID: containerIDPrefix + x.id,
		VolumeMounts:       volumeMountStatuses(c),
		AllocatedResources: c.Resources.Requests,
		Resources:          c.Resources.DeepCopy(),
		User:               x.user,
	}
	if old != nil && old.ContainerID == out.ContainerID {
		if out.User == nil {
			out.User = old.User
		}
		if old.Resources != nil && x.state == stateRunning && f.isResizing(x.id) {
			out.Resources = old.Resources // until it has those that it is granted
		}
	}
	switch x.state {
	case stateRunning:
		if f.busy[startKey(c.Name)] && c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
			out.State = waitingState(reasonContainerCreating, "")
			break
		}
		out.State.Running = &corev1.ContainerStateRunning{StartedAt: *seconds(x.started)}
	case stateExited:
		out.State.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: x.exitCode, Reason: x.reason, Message: x.message, ContainerID: out.ContainerID,
			StartedAt: *seconds(x.started), FinishedAt: *seconds(x.finished),
		}
	default:
		out.State = waitingState(f.notStarted(), "")
	}
	return out
}

// notStarted is why a container waits that has not run yet; kubelet tells
// PodInitializing of every container of a pod with init containers.
func (f facts) notStarted() string {
	if len(f.pod.Spec.InitContainers) > 0 {
		return reasonPodInitializing
	}
	return reasonContainerCreating
}

func volumeMountStatuses(c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if recursiveReadOnly(m) {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// recursiveReadOnly reports whether a mount asks for it; containerd 2 and
// every kernel we support can do it.
func recursiveReadOnly(m corev1.VolumeMount) bool {
	return m.ReadOnly && m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

// setHealth fills Started and Ready.
func (f facts) setHealth(c *corev1.Container, out *corev1.ContainerStatus) {
	started := out.State.Running != nil
	id := trimContainerID(out.ContainerID)
	if started {
		started = f.hasStarted(c, id)
	}
	out.Started = &started
	if f.isPlainInit(c.Name) {
		out.Ready = out.State.Terminated != nil && out.State.Terminated.ExitCode == 0
		return
	}
	out.Ready = started && f.isReady(c, id)
}

func (f facts) isPlainInit(name string) bool {
	return slices.ContainsFunc(f.pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name && !isSidecar(&c) })
}

// isReady reports whether a started container passes its readiness probe.
// Until the prober knows, what the API says of this very container holds, so
// that a restarted agent flips no condition.
func (f facts) isReady(c *corev1.Container, id string) bool {
	if c.ReadinessProbe == nil {
		return true
	}
	if result, known := f.probe(id, probes.Readiness); known {
		return result == probes.Success
	}
	old := statusOf(&f.pod.Status, c.Name)
	return old != nil && old.Ready && old.ContainerID == containerIDPrefix+id
}

func trimContainerID(id string) string {
	if len(id) > len(containerIDPrefix) && id[:len(containerIDPrefix)] == containerIDPrefix {
		return id[len(containerIDPrefix):]
	}
	return id
}

// repairInit marks init containers that the runtime has forgotten as
// completed, once an app container proves that they were.
func (f facts) repairInit(s *corev1.PodStatus) {
	if !f.appHasStarted() {
		return
	}
	for i := range s.InitContainerStatuses {
		st := &s.InitContainerStatuses[i]
		if st.State.Waiting != nil && f.isPlainInit(st.Name) && len(f.observed.containers[st.Name]) == 0 {
			st.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed",
				Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally"}}
			st.Ready = true
		}
	}
}

// settle makes the statuses of an ended pod final: nothing waits or runs.
func (f facts) settle(s *corev1.PodStatus) {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			st := &list[i]
			st.Ready, st.Started = st.Ready && f.isPlainInit(st.Name), new(bool)
			if st.State.Terminated != nil || !f.everStarted(s) && st.State.Waiting != nil {
				continue
			}
			if f.isPlainInit(st.Name) && st.LastTerminationState.Terminated == nil {
				continue
			}
			st.State = corev1.ContainerState{Terminated: cmp.Or(st.LastTerminationState.Terminated,
				lost("The container could not be located when the pod was terminated"))}
		}
	}
}

// everStarted reports whether the pod got as far as its app containers.
func (f facts) everStarted(s *corev1.PodStatus) bool {
	for i := range f.pod.Spec.Containers {
		name := f.pod.Spec.Containers[i].Name
		st := statusOf(s, name)
		if len(f.observed.containers[name]) > 0 || st != nil && st.LastTerminationState.Terminated != nil {
			return true
		}
	}
	return false
}

// setAddresses fills host and pod addresses. Those of a pod whose sandbox is
// gone stay as they were.
func (f facts) setAddresses(s *corev1.PodStatus, nodeIPs []netip.Addr) {
	if len(nodeIPs) > 0 {
		s.HostIP, s.HostIPs = nodeIPs[0].String(), nil
		for _, ip := range nodeIPs {
			s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip.String()})
		}
	}
	ips := f.podIPs(nodeIPs)
	if len(ips) == 0 {
		return
	}
	s.PodIP, s.PodIPs = ips[0], nil
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
}

// podIPs lists the pod's addresses, those of the node's first family first.
// A pod in the host's network has the node's, once its sandbox stands.
func (f facts) podIPs(nodeIPs []netip.Addr) []string {
	current := f.observed.current()
	if current == nil {
		return nil
	}
	var out []string
	if f.pod.Spec.HostNetwork {
		for _, ip := range nodeIPs {
			out = append(out, ip.String())
		}
		return out
	}
	out = slices.Clone(current.ips)
	slices.SortStableFunc(out, func(a, b string) int { return otherFamily(a, nodeIPs) - otherFamily(b, nodeIPs) })
	return out
}

func otherFamily(ip string, nodeIPs []netip.Addr) int {
	addr, err := netip.ParseAddr(ip)
	if err == nil && len(nodeIPs) > 0 && addr.Is4() != nodeIPs[0].Is4() {
		return 1
	}
	return 0
}
