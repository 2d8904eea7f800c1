package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cgroup2"
	"weft.dev/weft/agent/containerd"
	"weft.dev/weft/agent/cri"
)

// namespace holds everything the benchmark makes in the API.
const namespace = "bench"

// cluster is the local cluster under test.
type cluster struct {
	name   string
	bridge string
	subnet netip.Prefix
	client kubernetes.Interface
}

func (c *cluster) kubeconfig() string {
	return filepath.Join("/var/lib/weft", c.name, "server", "admin.kubeconfig")
}

// nodeFile is a file in the node's state directory, runFile one in its run
// directory.
func (c *cluster) nodeFile(node string, path ...string) string {
	return filepath.Join(append([]string{"/var/lib/weft", c.name, "nodes", node}, path...)...)
}

func (c *cluster) runFile(node, file string) string {
	return filepath.Join("/run/weft", c.name, node, file)
}

// startCluster runs weft up, and makes the namespace.
func startCluster(ctx context.Context, o options) (*cluster, error) {
	out, err := exec.CommandContext(ctx, o.weft(), "up", "--name", o.name, "--nodes", "2").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("weft up: %w\n%s", err, out)
	}
	c := &cluster{name: o.name, bridge: "weft-" + o.name}
	var described struct{ Subnet netip.Prefix }
	text, err := os.ReadFile(filepath.Join("/var/lib/weft", o.name, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(text, &described)
	}
	if err != nil {
		return nil, err
	}
	c.subnet = described.Subnet
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	_, err = c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	return c, errors.Join(err, c.awaitServiceAccount(ctx))
}

// awaitServiceAccount returns when pods can be made in the namespace.
func (c *cluster) awaitServiceAccount(ctx context.Context) error {
	return eventually(ctx, 30*time.Second, "the namespace's service account", func() error {
		_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// eventually repeats f until it succeeds.
func eventually(ctx context.Context, limit time.Duration, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pausePod is a pod that does nothing. With a node it is bound already.
func pausePod(name, node string) *corev1.Pod {
	none := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName:                     node,
			AutomountServiceAccountToken: &none,
			EnableServiceLinks:           &none, // or each Service adds variables to each container
			Containers: []corev1.Container{{
				Name: "pause", Image: containerd.SandboxImage, ImagePullPolicy: corev1.PullNever,
			}},
		},
	}
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// watchPod watches one pod, which need not exist yet.
func (c *cluster) watchPod(ctx context.Context, name string) (watch.Interface, error) {
	return c.client.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
}

// follow calls see for every state of the pod that w delivers, until see
// returns true.
func follow(ctx context.Context, w watch.Interface, name string, see func(watch.EventType, *corev1.Pod) bool) error {
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s: %w", name, ctx.Err())
		case event, ok := <-w.ResultChan():
			pod, isPod := event.Object.(*corev1.Pod)
			if !ok || !isPod {
				return fmt.Errorf("pod %s: the watch broke: %v", name, event.Object)
			}
			if see(event.Type, pod) {
				return nil
			}
		}
	}
}

// containerID is what the runtime calls the pod's only container.
func containerID(pod *corev1.Pod) string {
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

// startPod makes a pod on the node and returns it when it is ready.
func (c *cluster) startPod(ctx context.Context, name, node string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w, err := c.watchPod(ctx, name)
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	if _, err := c.client.CoreV1().Pods(namespace).Create(ctx, pausePod(name, node), metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	var ready *corev1.Pod
	err = follow(ctx, w, name, func(_ watch.EventType, pod *corev1.Pod) bool {
		ready = pod
		return isReady(pod)
	})
	return ready, err
}

// placeOf finds where the pod's container is: its network namespace and its
// cgroup. The caller closes the namespace.
func (c *cluster) placeOf(ctx context.Context, pod *corev1.Pod) (place, error) {
	runtime, err := c.runtime(pod.Spec.NodeName)
	if err != nil {
		return place{}, err
	}
	defer runtime.Close()
	id := containerID(pod)
	status, err := runtime.RuntimeService().ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return place{}, err
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil {
		return place{}, fmt.Errorf("container %s: process: %w", id, err)
	}
	cgroup, err := cgroupOf(info.Pid)
	if err != nil {
		return place{}, err
	}
	ns, err := netns.GetFromPid(info.Pid)
	return place{netns: ns, cgroup: cgroup}, err
}

// cgroupOf is the directory of a process in the cgroup2 hierarchy.
func cgroupOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	root, err := cgroup2.Root()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return filepath.Join(root, strings.TrimSpace(path)), nil
		}
	}
	return "", fmt.Errorf("process %d has no cgroup2", pid)
}

// runtime connects to the node's containerd.
func (c *cluster) runtime(node string) (*cri.Client, error) {
	return cri.Dial(c.runFile(node, "containerd.sock"), slog.New(slog.DiscardHandler))
}
