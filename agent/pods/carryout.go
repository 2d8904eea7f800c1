package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/server/logs"
	"weft.dev/weft/agent/volumes/downward"
)

// mountReminder is how often a volume that still fails is reported; kubelet
// repeats it with its attempts, in the end every 2 min 2 s.
const mountReminder = 2 * time.Minute

// carryOut begins the operations of a plan.
func (w *worker) carryOut(ctx context.Context, f facts, p plan) {
	pod := f.pod
	if p.ending {
		w.cancelStarts()
	} else {
		w.m.cfg.Objects.Acquire(pod)
	}
	for _, id := range p.remove {
		w.begin(ctx, removeKey(id), func(ctx context.Context) error { return w.removeContainer(ctx, f, id) })
	}
	for _, id := range p.stopOrphans {
		w.begin(ctx, removeKey(id), func(ctx context.Context) error { return w.removeSandbox(ctx, id) })
	}
	for _, k := range p.kill {
		w.beginKill(ctx, f, k)
	}
	if p.limits != nil {
		w.begin(ctx, opLimits, func(context.Context) error { return w.limitPod(pod, p.limits) })
	}
	for _, r := range p.resize {
		w.begin(ctx, resizeKey(r.id), func(ctx context.Context) error { return w.resize(ctx, r) })
	}
	if p.mount {
		w.begin(ctx, opMount, func(ctx context.Context) error { return w.mount(ctx, pod) })
	}
	if p.sandbox != nil {
		w.begin(ctx, opSandbox, func(ctx context.Context) error { return w.startSandbox(ctx, pod, *p.sandbox) })
	}
	for _, start := range p.start {
		w.begin(ctx, startKey(start.name), func(ctx context.Context) error { return w.startContainer(ctx, f, start) })
	}
	if p.tearDown {
		w.begin(ctx, opTearDown, func(ctx context.Context) error { return w.tearDown(ctx, f) })
	}
	if p.erase {
		w.begin(ctx, opErase, func(ctx context.Context) error { return w.erase(ctx, f) })
	}
}

// mount makes the pod's directories and volumes.
func (w *worker) mount(ctx context.Context, pod *corev1.Pod) error {
	for _, dir := range []string{w.m.node.podDir(pod), w.m.node.podLogDir(pod)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return failed(eventFailed, err)
		}
	}
	if _, err := w.m.cfg.Volumes.Mount(ctx, pod); err != nil {
		if ctx.Err() == nil {
			w.warnMounts(pod, err)
		}
		return failed(reasonContainerCreating, err)
	}
	w.mu.Lock()
	w.mounted = true
	w.mu.Unlock()
	return nil
}

// warnMounts reports each volume that failed: at once what is new, and what
// goes on as rarely as kubelet, at most every mountReminder.
func (w *worker) warnMounts(pod *corev1.Pod, err error) {
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = joined.Unwrap()
	}
	now, warned := time.Now(), map[string]time.Time{}
	for _, err := range errs {
		cause := err.Error()
		warned[cause] = w.warnedMounts[cause]
		if now.Sub(warned[cause]) >= mountReminder {
			warned[cause] = now
			w.warn(pod, nil, eventFailedMount, cause)
		}
	}
	w.warnedMounts = warned
}

// startSandbox stops what is left of earlier sandboxes and makes a new one.
func (w *worker) startSandbox(ctx context.Context, pod *corev1.Pod, start sandboxStart) error {
	if len(start.stop) > 0 {
		w.event(pod, nil, eventSandboxChanged, "Pod sandbox changed, it will be killed and re-created.")
	}
	for _, id := range start.stop {
		if err := w.m.cfg.Runtime.StopPodSandbox(ctx, id); err != nil {
			return failed(eventFailedSandbox, err)
		}
	}
	if err := w.limitPod(pod, podResources(pod)); err != nil {
		w.warn(pod, nil, eventFailedSandbox, errors.Unwrap(err).Error())
		return failed(eventFailedSandbox, errors.Unwrap(err))
	}
	config, err := w.m.node.sandboxConfig(pod, start.attempt)
	if err == nil {
		_, err = w.m.cfg.Runtime.RunPodSandbox(ctx, config, "")
	}
	if err != nil && ctx.Err() == nil {
		w.warn(pod, nil, eventFailedSandbox, fmt.Sprintf("Failed to create pod sandbox: %s", cri.Message(err)))
	}
	if err != nil {
		return failed(eventFailedSandbox, err)
	}
	return nil
}

// startContainer brings one container from its image to running, its
// postStart hook included.
func (w *worker) startContainer(ctx context.Context, f facts, start containerStart) error {
	pod, c := f.pod, containerSpec(f.pod, start.name)
	if c == nil {
		return failed(reasonCreateConfigError, fmt.Errorf("pod has no container %q", start.name))
	}
	sandbox, err := w.m.node.sandboxConfig(pod, f.observed.current().attempt)
	if err != nil {
		return failed(reasonCreateConfigError, err)
	}
	image, err := w.image(ctx, pod, wantedImage{c.Image, c.ImagePullPolicy, c}, sandbox)
	if err != nil {
		return err
	}
	id, err := w.createContainer(ctx, f, c, start, image, sandbox)
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, c, eventFailed, "Error: "+cri.Message(errors.Unwrap(err)))
		}
		return err
	}
	w.event(pod, c, eventCreated, "Container created")
	if err := w.m.cfg.Runtime.StartContainer(ctx, id); err != nil {
		w.warn(pod, c, eventFailed, "Error: "+cri.Message(err))
		return failed(reasonRunContainerError, errors.New(cri.Message(err)))
	}
	w.event(pod, c, eventStarted, "Container started")
	return w.postStart(ctx, f, c, id)
}

// createContainer creates a container in the current sandbox.
func (w *worker) createContainer(ctx context.Context, f facts, c *corev1.Container, start containerStart, image *runtimeapi.Image, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	pod := f.pod
	ips := f.podIPs(w.m.cfg.NodeIPs)
	environment, err := w.environment(ips)
	if err != nil {
		return "", failed(reasonCreateConfigError, err)
	}
	env, err := environment.of(ctx, pod, c)
	if err != nil {
		return "", failed(reasonCreateConfigError, err)
	}
	mounts, undo, err := w.mounts(ctx, pod, c, env, ips, sandbox)
	defer undo()
	if _, known := errors.AsType[*opError](err); known {
		return "", err
	}
	if err != nil {
		return "", failed(reasonCreateConfigError, err)
	}
	config, err := containerInput{node: w.m.node, pod: pod, spec: c, start: start, image: image,
		env: env, mounts: mounts, memory: w.m.memoryCapacity()}.config()
	if err != nil {
		return "", failed(reasonCreateConfigError, err)
	}
	if err := os.MkdirAll(filepath.Join(sandbox.LogDirectory, c.Name), 0o755); err != nil {
		return "", failed(reasonCreateConfigError, err)
	}
	if start.replaces != "" {
		if err := w.m.cfg.Runtime.RemoveContainer(ctx, start.replaces); err != nil {
			return "", failed(reasonCreateError, errors.New(cri.Message(err)))
		}
	}
	id, err := w.m.cfg.Runtime.CreateContainer(ctx, start.sandboxID, config, sandbox)
	if err != nil {
		return "", failed(reasonCreateError, errors.New(cri.Message(err)))
	}
	return id, nil
}

// environment is what variables are made of, as it is now.
func (w *worker) environment(ips []string) (environment, error) {
	services, err := w.m.services.List(labels.Everything())
	if err != nil {
		return environment{}, fmt.Errorf("list services: %w", err)
	}
	out := environment{objects: w.m.cfg.Objects, services: services, addresses: downward.Addresses{PodIPs: ips}}
	for _, ip := range w.m.cfg.NodeIPs {
		out.addresses.HostIPs = append(out.addresses.HostIPs, ip.String())
	}
	if self, err := w.m.nodes.Get(w.m.cfg.NodeName); err == nil {
		out.allocatable = self.Status.Allocatable
	}
	return out, nil
}

// memoryCapacity is the node's memory in bytes, 0 if not known.
func (m *Manager) memoryCapacity() int64 {
	self, err := m.nodes.Get(m.cfg.NodeName)
	if err != nil {
		return 0
	}
	return self.Status.Capacity.Memory().Value()
}

// postStart runs the hook; a container whose hook fails is killed.
func (w *worker) postStart(ctx context.Context, f facts, c *corev1.Container, id string) error {
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	ips := f.podIPs(w.m.cfg.NodeIPs)
	err := w.runHook(ctx, f.pod, c, id, ips, c.Lifecycle.PostStart)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	w.log.Info("postStart hook failed", "container", c.Name, "err", err)
	w.warn(f.pod, c, eventFailedPostStartHook, "PostStartHook failed")
	w.event(f.pod, c, eventKilling, "FailedPostStartHook")
	if killErr := w.m.cfg.Runtime.StopContainer(ctx, id, f.grace(c, "")); killErr != nil {
		w.log.Error("stop container after its postStart hook failed", "container", c.Name, "err", killErr)
	}
	return failed(reasonPostStartHookError, err)
}

// beginKill kills a container, or shortens a kill that is under way.
func (w *worker) beginKill(ctx context.Context, f facts, k containerKill) {
	key := killKey(k.id)
	deadline := f.now.Add(k.grace)
	w.mu.Lock()
	defer w.mu.Unlock()
	running := w.ops[key]
	if running != nil && !deadline.Before(running.deadline.Add(-time.Second)) {
		return
	}
	if k.restart {
		w.restart[k.id] = true
	}
	if running != nil {
		running.cancel()
	}
	first := running == nil
	op := w.launch(ctx, key, func(ctx context.Context) error { return w.kill(ctx, f, k, first) })
	op.deadline = deadline
}

// kill stops one container; only the first attempt runs its preStop hook.
func (w *worker) kill(ctx context.Context, f facts, k containerKill, first bool) error {
	c := containerSpec(f.pod, k.name)
	left := k.grace
	if first {
		w.event(f.pod, c, eventKilling, k.message)
		left = w.preStop(ctx, f.pod, c, k.id, f.podIPs(w.m.cfg.NodeIPs), left)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := w.m.cfg.Runtime.StopContainer(ctx, k.id, max(left, minimumGrace))
	if err != nil && ctx.Err() == nil {
		w.warn(f.pod, c, eventFailedKillPod, fmt.Sprintf("error killing container: %s", cri.Message(err)))
	}
	return err
}

// tearDown undoes everything but ended containers, sandboxes and logs.
func (w *worker) tearDown(ctx context.Context, f facts) error {
	for _, s := range f.observed.sandboxes {
		if err := w.m.cfg.Runtime.StopPodSandbox(ctx, s.id); err != nil {
			w.warn(f.pod, nil, eventFailedKillPod, fmt.Sprintf("error stopping sandbox: %s", cri.Message(err)))
			return failed(eventFailedKillPod, err)
		}
	}
	w.m.cfg.Prober.Remove(w.uid)
	if err := w.m.cfg.Volumes.Unmount(ctx, w.uid); err != nil {
		return failed(eventFailedKillPod, err)
	}
	w.m.cfg.Objects.Release(w.uid)
	if err := w.removeCgroup(f.pod); err != nil {
		return failed(eventFailedKillPod, err)
	}
	w.m.release(w.uid)
	w.mu.Lock()
	w.tornDown = true
	w.mu.Unlock()
	return nil
}

// removeCgroup removes the pod's cgroup, wherever it is if the class of the
// pod is not known.
func (w *worker) removeCgroup(pod *corev1.Pod) error {
	if pod.Status.QOSClass != "" {
		return w.m.cfg.Cgroups.Remove(w.m.node.podCgroup(pod))
	}
	known, err := w.m.cfg.Cgroups.Pods(w.m.cfg.CgroupParent)
	if err != nil {
		return err
	}
	if path, has := known[w.uid]; has {
		return w.m.cfg.Cgroups.Remove(path)
	}
	return nil
}

// removeContainer removes an ended container, its log first: once the
// container is gone, nobody would know of the log.
func (w *worker) removeContainer(ctx context.Context, f facts, id string) error {
	for _, list := range f.observed.containers {
		for _, c := range list {
			if c.id != id || c.logPath == "" {
				continue
			}
			if err := logs.Remove(w.logFile(c)); err != nil {
				return err
			}
		}
	}
	return w.m.cfg.Runtime.RemoveContainer(ctx, id)
}

func (w *worker) removeSandbox(ctx context.Context, id string) error {
	if err := w.m.cfg.Runtime.StopPodSandbox(ctx, id); err != nil {
		return err
	}
	return w.m.cfg.Runtime.RemovePodSandbox(ctx, id)
}

// erase removes the last traces of a pod: sandboxes, containers, files, logs.
func (w *worker) erase(ctx context.Context, f facts) error {
	for _, s := range f.observed.sandboxes {
		if err := w.removeSandbox(ctx, s.id); err != nil {
			return err
		}
	}
	dir := w.m.node.podDir(f.pod)
	for _, path := range []string{filepath.Join(dir, "containers"), filepath.Join(dir, "etc-hosts")} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	// Not RemoveAll: a volume that is still mounted must survive a mistake.
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if f.pod.Name != "" {
		if err := os.RemoveAll(w.m.node.podLogDir(f.pod)); err != nil {
			return err
		}
	}
	w.mu.Lock()
	w.erased = true
	w.mu.Unlock()
	return nil
}
