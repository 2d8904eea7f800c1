package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
)

// replay is the CRI calls of one pod, with what the agent asked for, to make
// them again without an agent.
type replay struct {
	sandbox   *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	logs      string // a directory for logs
	cgroup    string // the parent of the cgroups
}

// newReplay starts a pod, which stays, and takes its calls from what the
// runtime remembers of them.
func (c *cluster) newReplay(ctx context.Context, node string, runtime *cri.Client) (*replay, error) {
	pod, err := c.startPod(ctx, "model", node)
	if err != nil {
		return nil, err
	}
	r := &replay{
		sandbox: &runtimeapi.PodSandboxConfig{}, container: &runtimeapi.ContainerConfig{},
		logs: c.nodeFile(node, "logs", "bench"), cgroup: filepath.Join("/weft", c.name, node, "bench"),
	}
	container, err := runtime.RuntimeService().ContainerStatus(ctx,
		&runtimeapi.ContainerStatusRequest{ContainerId: containerID(pod), Verbose: true})
	if err != nil {
		return nil, err
	}
	var made struct {
		SandboxID string
		Config    json.RawMessage
	}
	if err := remembered(container.Info, &made); err != nil {
		return nil, fmt.Errorf("container %s: %w", containerID(pod), err)
	}
	sandbox, err := runtime.RuntimeService().PodSandboxStatus(ctx,
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: made.SandboxID, Verbose: true})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(made.Config, r.container); err != nil {
		return nil, err
	}
	if err := remembered(sandbox.Info, &made); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", made.SandboxID, err)
	}
	return r, errors.Join(json.Unmarshal(made.Config, r.sandbox), r.standAlone())
}

// remembered decodes what containerd tells when asked for all it knows.
func remembered(info map[string]string, into any) error {
	return json.Unmarshal([]byte(info["info"]), into)
}

// standAlone takes the agent out of the calls: without the labels of a pod it
// leaves the sandbox alone, and the files it mounts go with the pod.
func (r *replay) standAlone() error {
	r.sandbox.Labels, r.sandbox.Annotations = nil, nil
	r.container.Labels, r.container.Annotations = nil, nil
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		return err
	}
	for i, mount := range r.container.Mounts {
		mount.HostPath = filepath.Join(r.logs, fmt.Sprintf("mount-%d", i))
		if err := os.WriteFile(mount.HostPath, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// time makes the calls, and takes it all away again.
func (r *replay) time(ctx context.Context, runtime *cri.Client) (times PodStart, err error) {
	id := string(uuid.NewUUID())
	r.sandbox.Metadata = &runtimeapi.PodSandboxMetadata{Name: "bare", Namespace: namespace, Uid: id}
	r.sandbox.LogDirectory = filepath.Join(r.logs, id)
	r.sandbox.Linux.CgroupParent = filepath.Join(r.cgroup, id)
	began := time.Now()
	sandboxID, err := runtime.RunPodSandbox(ctx, r.sandbox, "")
	if err != nil {
		return times, err
	}
	defer func() {
		err = errors.Join(err, runtime.StopPodSandbox(ctx, sandboxID), runtime.RemovePodSandbox(ctx, sandboxID))
	}()
	if err := os.MkdirAll(filepath.Join(r.sandbox.LogDirectory, filepath.Dir(r.container.LogPath)), 0o755); err != nil {
		return times, err
	}
	containerID, err := runtime.CreateContainer(ctx, sandboxID, r.container, r.sandbox)
	if err != nil {
		return times, err
	}
	if err := runtime.StartContainer(ctx, containerID); err != nil {
		return times, err
	}
	answered := time.Now()
	sandbox, created, started, err := stages(ctx, runtime, sandboxID, containerID)
	return newPodStart(began, began, sandbox, created, started, answered), err
}
