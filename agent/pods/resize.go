package pods

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resizing a pod in place (KEP-1287): what it was granted (allocate.go) is
// compared with what its cgroup and its running containers have, and what
// differs is changed, without a restart unless the container asks for one.
// The pod's cgroup is widened before its containers are, and narrowed after.

const (
	opLimits = "limits" // of the pod's cgroup

	eventResizeDeferred   = "ResizeDeferred"
	eventResizeInfeasible = "ResizeInfeasible"
	eventResizeStarted    = "ResizeStarted"
	eventResizeCompleted  = "ResizeCompleted"
	eventResizeError      = "ResizeError"
)

func resizeKey(id string) string { return "resize/" + id }

type containerResize struct {
	id, name  string
	from, to  *runtimeapi.LinuxContainerResources
	isSmaller bool // in memory
}

// decideResize plans what brings the pod from the resources it has to those
// it is granted. It reports whether containers may start meanwhile: not
// before there is room for them.
func (f facts) decideResize(p *plan) bool {
	want := podResources(f.pod)
	resizing := f.resizing()
	target := want
	if len(resizing) > 0 {
		target = loosest(f.limits, want)
	}
	if !sameLimits(f.limits, target) && f.may(p, opLimits) {
		p.limits = target
	}
	if f.limits == nil || !sameLimits(f.limits, loosest(f.limits, want)) {
		return false // not wide enough yet, or not known
	}
	for _, r := range resizing {
		c := containerSpec(f.pod, r.name)
		switch {
		case f.busy[killKey(r.id)] || f.busy[startKey(r.name)]:
		case f.asksRestart(c, r):
			running := f.observed.active(r.name)
			f.stop(p, running, f.grace(c, ""), fmt.Sprintf("Container %s resize requires restart", r.name), true)
		case f.may(p, resizeKey(r.id)):
			p.resize = append(p.resize, r)
		}
	}
	return true
}

// resizing lists the running containers whose resources are not those they
// are granted.
func (f facts) resizing() (list []containerResize) {
	everyContainer(f.pod, func(c *corev1.Container) {
		running := f.observed.active(c.Name)
		if running == nil || running.state != stateRunning || running.resources == nil {
			return
		}
		// Only CPU and memory are compared, and the score for the OOM killer
		// cannot be changed: the node's memory does not matter.
		want := containerResources(f.pod, c, 0)
		if sameLimits(running.resources, want) && !f.asksRestartForRequest(c, running.id) {
			return
		}
		list = append(list, containerResize{
			id: running.id, name: c.Name, from: running.resources, to: want,
			isSmaller: narrower(want.MemoryLimitInBytes, running.resources.MemoryLimitInBytes),
		})
	})
	return list
}

func (f facts) isResizing(id string) bool {
	return slices.ContainsFunc(f.resizing(), func(r containerResize) bool { return r.id == id })
}

// asksRestart reports whether a container wants to be restarted for what
// changes (container.resizePolicy).
func (f facts) asksRestart(c *corev1.Container, r containerResize) bool {
	cpu := r.from.CpuShares != r.to.CpuShares || limit(r.from.CpuQuota) != limit(r.to.CpuQuota)
	memory := limit(r.from.MemoryLimitInBytes) != limit(r.to.MemoryLimitInBytes)
	return cpu && restartsFor(c, corev1.ResourceCPU) || memory && restartsFor(c, corev1.ResourceMemory) ||
		f.asksRestartForRequest(c, r.id)
}

// asksRestartForRequest reports whether a container wants to be restarted for
// a changed memory request, of which the runtime knows nothing: what this
// very container had is in the API.
func (f facts) asksRestartForRequest(c *corev1.Container, id string) bool {
	old := statusOf(&f.pod.Status, c.Name)
	if old == nil || old.Resources == nil || old.ContainerID != containerIDPrefix+id || !restartsFor(c, corev1.ResourceMemory) {
		return false
	}
	return old.Resources.Requests.Memory().Cmp(*c.Resources.Requests.Memory()) != 0
}

func restartsFor(c *corev1.Container, name corev1.ResourceName) bool {
	for _, policy := range c.ResizePolicy {
		if policy.ResourceName == name {
			return policy.RestartPolicy == corev1.RestartContainer
		}
	}
	return false
}

// limit is a limit of CPU or memory with one way to say that there is none.
func limit(n int64) int64 { return max(n, 0) }

func narrower(a, b int64) bool {
	a, b = limit(a), limit(b)
	return a != 0 && (b == 0 || a < b)
}

// sameLimits compares CPU and memory; nil is unknown.
func sameLimits(a, b *runtimeapi.LinuxContainerResources) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.CpuShares == b.CpuShares && limit(a.CpuQuota) == limit(b.CpuQuota) &&
		limit(a.MemoryLimitInBytes) == limit(b.MemoryLimitInBytes)
}

// loosest has the wider limits of both; those that are not known are taken
// to be as wide as can be.
func loosest(a, b *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{CpuPeriod: b.CpuPeriod, CpuShares: b.CpuShares}
	if a == nil {
		return out
	}
	wider := func(x, y int64) int64 {
		if narrower(x, y) {
			return limit(y)
		}
		return limit(x)
	}
	out.CpuShares = max(a.CpuShares, b.CpuShares)
	out.CpuQuota = wider(a.CpuQuota, b.CpuQuota)
	out.MemoryLimitInBytes = wider(a.MemoryLimitInBytes, b.MemoryLimitInBytes)
	return out
}

// limitPod gives the pod's cgroup other limits.
func (w *worker) limitPod(pod *corev1.Pod, limits *runtimeapi.LinuxContainerResources) error {
	if err := w.m.cfg.Cgroups.Ensure(w.m.node.podCgroup(pod), limits, w.m.cfg.PodPids); err != nil {
		return failed(corev1.PodReasonError, err)
	}
	w.mu.Lock()
	w.limits = limits
	w.mu.Unlock()
	return nil
}

// resize changes what a running container may use. Memory in use is not
// taken away: the kernel would kill for it.
func (w *worker) resize(ctx context.Context, r containerResize) error {
	if r.isSmaller {
		used, err := w.m.cfg.Runtime.MemoryUsage(ctx, r.id)
		if err != nil {
			return failed(corev1.PodReasonError, err)
		}
		if int64(used) > r.to.MemoryLimitInBytes {
			return failed(corev1.PodReasonError, fmt.Errorf(
				"container %s: the new memory limit of %d is below its current usage of %d", r.name, r.to.MemoryLimitInBytes, used))
		}
	}
	to := &runtimeapi.LinuxContainerResources{
		CpuPeriod: r.to.CpuPeriod, CpuShares: r.to.CpuShares,
		CpuQuota: cmp.Or(r.to.CpuQuota, -1), MemoryLimitInBytes: cmp.Or(r.to.MemoryLimitInBytes, -1),
	}
	if err := w.m.cfg.Runtime.UpdateResources(ctx, r.id, to); err != nil {
		return failed(corev1.PodReasonError, err)
	}
	return nil
}

// setResize says in the status how far a resize is, and what the pod was
// granted.
func (f facts) setResize(s *corev1.PodStatus, p plan) {
	if r := f.pod.Spec.Resources; r != nil {
		s.AllocatedResources, s.Resources = r.Requests, r.DeepCopy()
	}
	f.setOrClear(s, corev1.PodResizePending, f.resizePending)
	f.setOrClear(s, corev1.PodResizeInProgress, f.resizeProgress(p))
}

// resizeProgress is the state of a resize that was granted, nil if it is done.
func (f facts) resizeProgress(p plan) *waiting {
	resizing := f.resizing()
	if p.ending || f.observed.current() == nil || len(resizing) == 0 && (f.limits == nil || sameLimits(f.limits, podResources(f.pod))) {
		return nil
	}
	progress := &waiting{}
	keys := []string{opLimits}
	for _, r := range resizing {
		keys = append(keys, resizeKey(r.id))
	}
	for _, key := range keys {
		if x, failed := f.failures[key]; failed {
			progress.reason, progress.message = x.reason, x.message
		}
	}
	return progress
}

func (f facts) setOrClear(s *corev1.PodStatus, kind corev1.PodConditionType, w *waiting) {
	if w != nil {
		f.set(s, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, Reason: w.reason, Message: w.message})
		return
	}
	kept := s.Conditions[:0]
	for _, c := range s.Conditions {
		if c.Type != kind {
			kept = append(kept, c)
		}
	}
	s.Conditions = kept
}

// announceResize reports each step of a resize once.
func (w *worker) announceResize(f facts, p plan) {
	pending, progress := f.resizePending, f.resizeProgress(p)
	if pending != nil && (w.resizePending == nil || *pending != *w.resizePending) {
		reason := eventResizeDeferred
		if pending.reason == corev1.PodReasonInfeasible {
			reason = eventResizeInfeasible
		}
		w.warn(f.pod, nil, reason, "Pod resize "+pending.reason+": "+pending.message)
	}
	switch before := w.resizeProgress; {
	case progress == nil && before != nil && !p.ending:
		w.event(f.pod, nil, eventResizeCompleted, "Pod resize completed")
	case progress != nil && before == nil:
		w.event(f.pod, nil, eventResizeStarted, "Pod resize started")
	case progress != nil && progress.message != "" && *progress != *before:
		w.warn(f.pod, nil, eventResizeError, "Pod resize error: "+progress.message)
	}
	w.resizePending, w.resizeProgress = pending, progress
}
