package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/watch"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/containerd"
	"weft.dev/weft/agent/cri"
)

// PodTimes are what starting a pod took, in milliseconds: through the API
// with its stages, and by bare CRI calls.
type PodTimes struct {
	Ready     []float64 `json:"readyMilliseconds"` // from the POST to Ready, as a watcher sees it
	Bound     []float64 `json:"boundMilliseconds"` // POST to bound to a node
	Sandbox   []float64 `json:"sandboxMilliseconds"`
	Created   []float64 `json:"createdMilliseconds"` // sandbox to container created
	Started   []float64 `json:"startedMilliseconds"` // container created to started
	Published []float64 `json:"publishedMilliseconds"`

	CRI             []float64 `json:"criMilliseconds"` // the three calls together
	RunPodSandbox   []float64 `json:"runPodSandboxMilliseconds"`
	CreateContainer []float64 `json:"createContainerMilliseconds"`
	StartContainer  []float64 `json:"startContainerMilliseconds"`
}

func (t PodTimes) print(w io.Writer) {
	printTimes(w, "Pod start, against the same CRI calls on the same containerd", []timesRow{
		{"bare CRI calls", t.CRI},
		{"  RunPodSandbox", t.RunPodSandbox},
		{"  CreateContainer", t.CreateContainer},
		{"  StartContainer", t.StartContainer},
		{"pod, created to Ready", t.Ready},
		{"  created to bound", t.Bound},
		{"  bound to sandbox ready", t.Sandbox},
		{"  sandbox ready to container created", t.Created},
		{"  container created to started", t.Started},
		{"  started to Ready seen by a watcher", t.Published},
	})
}

// measurePods starts pods through the API and by CRI in turn.
func measurePods(ctx context.Context, o options, c *cluster, say func(string)) (times PodTimes, err error) {
	const node = "node-1"
	runtime, err := c.runtime(node)
	if err != nil {
		return times, err
	}
	defer func() { err = errors.Join(err, runtime.Close()) }()
	for i := range o.pods {
		say(fmt.Sprintf("%d of %d", i+1, o.pods))
		if err := c.timePod(ctx, fmt.Sprintf("start-%d", i), node, runtime, &times); err != nil {
			return times, err
		}
		if err := timeCRI(ctx, c, node, runtime, &times); err != nil {
			return times, err
		}
	}
	return times, nil
}

// timePod creates a pod that the scheduler may place on one node only, and
// takes the times.
func (c *cluster) timePod(ctx context.Context, name, node string, runtime *cri.Client, times *PodTimes) error {
	pod := pausePod(name, "")
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	w, err := c.watchPod(ctx, name)
	if err != nil {
		return err
	}
	defer w.Stop()
	began := time.Now()
	if _, err := c.client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return err
	}
	var bound, ready time.Time
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = followWatch(limited, w, name, func(_ watch.EventType, seen *corev1.Pod) bool {
		pod = seen
		if bound.IsZero() && seen.Spec.NodeName != "" {
			bound = time.Now()
		}
		if !isReady(seen) {
			return false
		}
		ready = time.Now()
		return true
	})
	if err != nil {
		return err
	}
	sandbox, created, started, err := stages(ctx, runtime, pod.UID)
	if err != nil {
		return err
	}
	add := func(list *[]float64, from, to time.Time) { *list = append(*list, milliseconds(to.Sub(from))) }
	add(&times.Ready, began, ready)
	add(&times.Bound, began, bound)
	add(&times.Sandbox, bound, sandbox)
	add(&times.Created, sandbox, created)
	add(&times.Started, created, started)
	add(&times.Published, started, ready)
	return c.removePod(ctx, name, w)
}

// stages asks the runtime when it had made what a pod consists of.
func stages(ctx context.Context, runtime *cri.Client, uid types.UID) (sandbox, created, started time.Time, err error) {
	selector := map[string]string{"io.kubernetes.pod.uid": string(uid)}
	sandboxes, err := runtime.Sandboxes(ctx, selector)
	if err != nil {
		return
	}
	containers, err := runtime.Containers(ctx, selector)
	if err != nil {
		return
	}
	if len(sandboxes) != 1 || len(containers) != 1 {
		err = fmt.Errorf("%d sandboxes and %d containers, want one of each", len(sandboxes), len(containers))
		return
	}
	status, err := runtime.ContainerStatus(ctx, containers[0].Id)
	if err != nil {
		return
	}
	return time.Unix(0, sandboxes[0].CreatedAt), time.Unix(0, status.CreatedAt), time.Unix(0, status.StartedAt), nil
}

func (c *cluster) removePod(ctx context.Context, name string, w watch.Interface) error {
	now := int64(0)
	if err := c.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return err
	}
	return followWatch(ctx, w, name, func(event watch.EventType, _ *corev1.Pod) bool { return event == watch.Deleted })
}

// timeCRI makes the three calls that such a pod takes, and takes the times.
// Without the labels of a pod, the agent leaves the sandbox alone.
func timeCRI(ctx context.Context, c *cluster, node string, runtime *cri.Client, times *PodTimes) (err error) {
	id := string(uuid.NewUUID())
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bare", Namespace: namespace, Uid: id},
		Hostname:     "bare",
		LogDirectory: c.nodeFile(node, "bench", id),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    strings.Join([]string{"/weft", c.name, node, "bench"}, "/"),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
	began := time.Now()
	sandbox, err := runtime.RunPodSandbox(ctx, config, "")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, runtime.StopPodSandbox(ctx, sandbox), runtime.RemovePodSandbox(ctx, sandbox))
	}()
	ran := time.Now()
	container, err := runtime.CreateContainer(ctx, sandbox, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "pause"},
		Image:    &runtimeapi.ImageSpec{Image: containerd.SandboxImage},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions}},
	}, config)
	if err != nil {
		return err
	}
	created := time.Now()
	if err := runtime.StartContainer(ctx, container); err != nil {
		return err
	}
	started := time.Now()
	times.CRI = append(times.CRI, milliseconds(started.Sub(began)))
	times.RunPodSandbox = append(times.RunPodSandbox, milliseconds(ran.Sub(began)))
	times.CreateContainer = append(times.CreateContainer, milliseconds(created.Sub(ran)))
	times.StartContainer = append(times.StartContainer, milliseconds(started.Sub(created)))
	return nil
}
