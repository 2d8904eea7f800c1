package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"weft.dev/weft/agent/cri"
)

// PodTimes are what starting pods took, through the API and by bare calls of
// the Container Runtime Interface.
type PodTimes struct {
	Pods []PodStart `json:"pods"`
	Bare []PodStart `json:"bareCRI"`
}

// PodStart is one start, in milliseconds. The runtime says when it had made
// the sandbox's and the container's process, so the stages of both kinds are
// the same.
type PodStart struct {
	Bound     float64 `json:"bound"`     // POST to bound to a node; 0 without the API
	Sandbox   float64 `json:"sandbox"`   // to the sandbox's record in the runtime: preparation, CNI ADD
	Created   float64 `json:"created"`   // to the container's: the sandbox's process, CreateContainer
	Started   float64 `json:"started"`   // to the container's process
	Published float64 `json:"published"` // to Ready at a watcher; bare: to the answer of StartContainer
	Whole     float64 `json:"whole"`
}

// newPodStart takes stages from points in time; bound is when the node could
// begin, which is the beginning itself without the API.
func newPodStart(began, bound, sandbox, created, started, ready time.Time) PodStart {
	between := func(from, to time.Time) float64 { return float64(to.Sub(from)) / float64(time.Millisecond) }
	return PodStart{
		Bound: between(began, bound), Sandbox: between(bound, sandbox), Created: between(sandbox, created),
		Started: between(created, started), Published: between(started, ready), Whole: between(began, ready),
	}
}

func (t PodTimes) print(out io.Writer) {
	fmt.Fprint(out, "\nPod start: through the API until Ready, and the bare CRI calls on the same containerd, in ms\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\tpod\t\tCRI\t\tpod / CRI\t\n")
	for _, row := range []struct {
		what   string
		figure func(PodStart) float64
	}{
		{"whole", func(p PodStart) float64 { return p.Whole }},
		{"scheduler: created to bound", func(p PodStart) float64 { return p.Bound }},
		{"preparation, CNI ADD", func(p PodStart) float64 { return p.Sandbox }},
		{"sandbox process, CreateContainer", func(p PodStart) float64 { return p.Created }},
		{"StartContainer", func(p PodStart) float64 { return p.Started }},
		{"started to Ready at a watcher (CRI: to the answer)", func(p PodStart) float64 { return p.Published }},
	} {
		pod, bare := spreadOf(t.Pods, row.figure), spreadOf(t.Bare, row.figure)
		ratio := "–"
		if bare.Median > 0 {
			ratio = fmt.Sprintf("%.2f ×", pod.Median/bare.Median)
		}
		fmt.Fprintf(w, "%s\t%.1f\t(%.1f to %.1f)\t%.1f\t(%.1f to %.1f)\t%s\t\n", row.what,
			pod.Median, pod.Min, pod.Max, bare.Median, bare.Min, bare.Max, ratio)
	}
	w.Flush()
}

// measurePods starts pods through the API and by CRI in turn.
func measurePods(ctx context.Context, o options, c *cluster, say func(string)) (times PodTimes, err error) {
	const node = "node-1"
	runtime, err := c.runtime(node)
	if err != nil {
		return times, err
	}
	defer func() { err = errors.Join(err, runtime.Close()) }()
	before, err := runtime.Sandboxes(ctx, nil)
	if err != nil {
		return times, err
	}
	bare, err := c.newReplay(ctx, node, runtime)
	if err != nil {
		return times, err
	}
	for i := range 2 * o.pods {
		if err := awaitSandboxes(ctx, runtime, len(before)+1); err != nil {
			return times, err
		}
		say(fmt.Sprintf("%d of %d", i/2+1, o.pods))
		// Who goes first alternates: pod, CRI, CRI, pod.
		if i%4 == 0 || i%4 == 3 {
			start, err := c.timePod(ctx, fmt.Sprintf("start-%d", i), node, runtime)
			if err != nil {
				return times, err
			}
			times.Pods = append(times.Pods, start)
			continue
		}
		start, err := bare.time(ctx, runtime)
		if err != nil {
			return times, fmt.Errorf("bare CRI calls: %w", err)
		}
		times.Bare = append(times.Bare, start)
	}
	return times, nil
}

// awaitSandboxes returns when nothing is left of the last start, which would
// slow the next one down. A pod is gone from the API before that.
func awaitSandboxes(ctx context.Context, runtime *cri.Client, want int) error {
	return eventually(ctx, time.Minute, "the runtime to be clean again", func() error {
		sandboxes, err := runtime.Sandboxes(ctx, nil)
		if err == nil && len(sandboxes) != want {
			err = fmt.Errorf("%d sandboxes, want %d", len(sandboxes), want)
		}
		return err
	})
}

// timePod creates a pod that the scheduler may place on one node only.
func (c *cluster) timePod(ctx context.Context, name, node string, runtime *cri.Client) (PodStart, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pod := pausePod(name, "")
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	w, err := c.watchPod(ctx, name)
	if err != nil {
		return PodStart{}, err
	}
	defer w.Stop()
	began := time.Now()
	if _, err := c.client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return PodStart{}, err
	}
	var bound, ready time.Time
	if err := follow(ctx, w, name, func(_ watch.EventType, seen *corev1.Pod) bool {
		pod = seen
		if bound.IsZero() && seen.Spec.NodeName != "" {
			bound = time.Now()
		}
		ready = time.Now()
		return isReady(seen)
	}); err != nil {
		return PodStart{}, err
	}
	sandboxes, err := runtime.Sandboxes(ctx, map[string]string{"io.kubernetes.pod.uid": string(pod.UID)})
	if err != nil {
		return PodStart{}, err
	}
	if len(sandboxes) != 1 {
		return PodStart{}, fmt.Errorf("pod %s has %d sandboxes, want 1", name, len(sandboxes))
	}
	sandbox, created, started, err := stages(ctx, runtime, sandboxes[0].Id, containerID(pod))
	if err != nil {
		return PodStart{}, err
	}
	return newPodStart(began, bound, sandbox, created, started, ready), c.removePod(ctx, name, w)
}

// stages asks the runtime when it had made what a pod consists of.
func stages(ctx context.Context, runtime *cri.Client, sandboxID, containerID string) (sandbox, created, started time.Time, err error) {
	s, err := runtime.SandboxStatus(ctx, sandboxID)
	if err != nil {
		return
	}
	c, err := runtime.ContainerStatus(ctx, containerID)
	if err != nil {
		return
	}
	return time.Unix(0, s.CreatedAt), time.Unix(0, c.CreatedAt), time.Unix(0, c.StartedAt), nil
}

// removePod removes a pod that w watches, and waits until it is gone.
func (c *cluster) removePod(ctx context.Context, name string, w watch.Interface) error {
	now := int64(0)
	if err := c.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return err
	}
	return follow(ctx, w, name, func(event watch.EventType, _ *corev1.Pod) bool { return event == watch.Deleted })
}
