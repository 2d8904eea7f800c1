package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// containerInput is what the configuration of a container is made of.
type containerInput struct {
	node   node
	pod    *corev1.Pod
	spec   *corev1.Container
	start  containerStart
	image  *runtimeapi.Image
	env    map[string]string
	mounts []*runtimeapi.Mount
	memory int64 // of the node, in bytes
}

// config is the request for a container. It is pure.
func (in containerInput) config() (*runtimeapi.ContainerConfig, error) {
	c := in.spec
	var uid *int64
	if in.image.Uid != nil {
		uid = &in.image.Uid.Value
	}
	security, err := in.node.containerSecurity(in.pod, c, uid, in.image.Username)
	if err != nil {
		return nil, err
	}
	if in.start.target != "" && security.NamespaceOptions.Pid == runtimeapi.NamespaceMode_CONTAINER {
		security.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		security.NamespaceOptions.TargetId = in.start.target
	}
	config := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(in.start.restartCount)},
		Image:       &runtimeapi.ImageSpec{Image: in.image.Id, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, in.env),
		Args:        expandAll(c.Args, in.env),
		WorkingDir:  c.WorkingDir,
		Envs:        keyValues(in.env),
		Mounts:      in.mounts,
		LogPath:     logPath(c.Name, in.start.restartCount),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Labels:      containerLabels(in.pod, c),
		Annotations: containerAnnotations(in.pod, c, in.start),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       containerResources(in.pod, c, in.memory),
			SecurityContext: security,
		},
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		config.StopSignal = runtimeapi.Signal(runtimeapi.Signal_value[string(*c.Lifecycle.StopSignal)])
	}
	return config, nil
}

func containerLabels(pod *corev1.Pod, c *corev1.Container) map[string]string {
	return map[string]string{
		labelPodName:       pod.Name,
		labelPodNamespace:  pod.Namespace,
		labelPodUID:        string(pod.UID),
		labelContainerName: c.Name,
	}
}

// containerAnnotations hold what a later agent needs to know of a container:
// how to judge its end, and how to stop it if the API no longer knows the pod.
func containerAnnotations(pod *corev1.Pod, c *corev1.Container, start containerStart) map[string]string {
	out := map[string]string{
		annotationHash:          hashOf(c),
		annotationRestartCount:  strconv.Itoa(int(start.restartCount)),
		annotationMessagePath:   c.TerminationMessagePath,
		annotationMessagePolicy: string(c.TerminationMessagePolicy),
		annotationBackoff:       start.backoff.String(),
	}
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		out[annotationTerminationGrace] = strconv.FormatInt(*pod.Spec.TerminationGracePeriodSeconds, 10)
	}
	if pod.DeletionGracePeriodSeconds != nil {
		out[annotationDeletionGrace] = strconv.FormatInt(*pod.DeletionGracePeriodSeconds, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		// An API type always encodes.
		data, _ := json.Marshal(c.Lifecycle.PreStop)
		out[annotationPreStop] = string(data)
	}
	if len(c.Ports) > 0 {
		data, _ := json.Marshal(c.Ports)
		out[annotationPorts] = string(data)
	}
	return out
}

// mounts are a container's volume mounts, its hosts file and its termination
// message file. undo takes back what subpaths needed, once the container is
// created.
func (w *worker) mounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, env map[string]string, ips []string, sandbox *runtimeapi.PodSandboxConfig) (list []*runtimeapi.Mount, undo func(), err error) {
	var cleanups []func()
	undo = func() {
		for _, f := range slices.Backward(cleanups) {
			f()
		}
	}
	volumes, err := w.m.cfg.Volumes.Mount(ctx, pod)
	if err != nil {
		return nil, undo, err
	}
	ownHosts := false
	for _, m := range c.VolumeMounts {
		if m, err = expandSubPath(m, env); err != nil {
			return nil, undo, err
		}
		if source := imageVolume(pod, m.Name); source != nil {
			mount, err := w.imageMount(ctx, pod, c, m, source, sandbox)
			if err != nil {
				return nil, undo, err
			}
			list = append(list, mount)
			continue
		}
		mounted, ok := volumes[m.Name]
		if !ok {
			return nil, undo, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
		}
		hostPath := mounted.HostPath
		if m.SubPath != "" {
			sub, cleanup, err := w.m.cfg.Volumes.SubPath(ctx, pod, c, m)
			if err != nil {
				return nil, undo, err
			}
			if cleanup != nil {
				cleanups = append(cleanups, cleanup)
			}
			hostPath = sub
		}
		ownHosts = ownHosts || m.MountPath == hostsPath
		list = append(list, &runtimeapi.Mount{
			HostPath:          hostPath,
			ContainerPath:     absolute(m.MountPath),
			Readonly:          m.ReadOnly || mounted.ReadOnly,
			RecursiveReadOnly: recursiveReadOnly(m),
			Propagation:       propagation(m.MountPropagation),
		})
	}
	own, err := w.ownMounts(pod, c, ips, ownHosts)
	return append(list, own...), undo, err
}

// ownMounts are the files that the agent keeps for a container.
func (w *worker) ownMounts(pod *corev1.Pod, c *corev1.Container, ips []string, ownHosts bool) ([]*runtimeapi.Mount, error) {
	var list []*runtimeapi.Mount
	if !ownHosts {
		path, err := w.m.node.writeHosts(pod, ips)
		if err != nil {
			return nil, err
		}
		list = append(list, &runtimeapi.Mount{ContainerPath: hostsPath, HostPath: path})
	}
	if c.TerminationMessagePath != "" {
		path, err := w.messageFile(pod, c)
		if err != nil {
			return nil, err
		}
		list = append(list, &runtimeapi.Mount{ContainerPath: absolute(c.TerminationMessagePath), HostPath: path})
	}
	return list, nil
}

// messageFile makes a new, empty file that any user may write.
func (w *worker) messageFile(pod *corev1.Pod, c *corev1.Container) (string, error) {
	dir := filepath.Join(w.m.node.podDir(pod), "containers", c.Name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make directory of termination messages: %w", err)
	}
	file, err := os.CreateTemp(dir, "")
	if err != nil {
		return "", fmt.Errorf("make termination message file: %w", err)
	}
	defer file.Close()
	// CreateTemp makes it private, and the umask would cut other modes.
	return file.Name(), file.Chmod(0o666)
}

// expandSubPath resolves subPathExpr and refuses subpaths that lead out of
// the volume.
func expandSubPath(m corev1.VolumeMount, env map[string]string) (corev1.VolumeMount, error) {
	if m.SubPathExpr != "" {
		expanded, err := expandStrictly(m.SubPathExpr, env)
		if err != nil {
			return m, err
		}
		m.SubPath, m.SubPathExpr = expanded, ""
	}
	if filepath.IsAbs(m.SubPath) {
		return m, fmt.Errorf("error SubPath `%s` must not be an absolute path", m.SubPath)
	}
	if slices.Contains(strings.Split(m.SubPath, "/"), "..") {
		return m, fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", m.SubPath)
	}
	return m, nil
}

// expandStrictly replaces $(VAR) and fails on an unknown one.
func expandStrictly(s string, env map[string]string) (string, error) {
	var missing []error
	out := expansion.Expand(s, func(name string) string {
		value, ok := env[name]
		if !ok || value == "" {
			missing = append(missing, fmt.Errorf("missing value for %q", name))
		}
		return value
	})
	return out, errors.Join(missing...)
}

func propagation(mode *corev1.MountPropagationMode) runtimeapi.MountPropagation {
	switch {
	case mode == nil:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	case *mode == corev1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case *mode == corev1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}
	return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
}
