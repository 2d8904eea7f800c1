package pods

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"weft.dev/weft/agent/cri/critest"
	"weft.dev/weft/agent/probes"
	"weft.dev/weft/agent/volumes"
)

// realNode is an agent with a real runtime, volumes, probes and cgroups, and
// an API server in memory.
type realNode struct {
	t       *testing.T
	runtime *critest.Runtime
	client  *fake.Clientset
	events  *record.FakeRecorder
	stop    func()
}

func newRealNode(t *testing.T) *realNode {
	n := &realNode{t: t, runtime: critest.Start(t), client: fake.NewClientset(), events: record.NewFakeRecorder(1000)}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *realNode) start() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(n.client, 0)
	must := func(err error) {
		if err != nil {
			n.t.Fatal(err)
		}
	}
	var manager *Manager
	objects, err := volumes.NewObjects(volumes.ObjectsConfig{Client: n.client, Changed: func(uid types.UID) { manager.ObjectsChanged(uid) }})
	must(err)
	local, err := volumes.NewLocalDirs(filepath.Join(n.runtime.Dir, "volumes"))
	must(err)
	mounts, err := volumes.New(volumes.Config{NodeName: "n1", KubeletDir: filepath.Join(n.runtime.Dir, "kubelet"), Client: n.client,
		Objects: objects, Local: local, Allocatable: func() corev1.ResourceList { return nil }})
	must(err)
	prober, err := probes.New(probes.Config{Exec: n.runtime.ExecSync,
		Changed: func(uid types.UID) { manager.Changed(uid) },
		Event: func(pod *corev1.Pod, container, kind, reason, message string) {
			manager.Event(pod, container, kind, reason, message)
		}})
	must(err)
	manager, err = New(Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Client: n.client, Local: factory, Cluster: factory,
		Runtime: n.runtime, Images: n.runtime, Volumes: mounts, Objects: objects, Prober: prober,
		KubeletDir: filepath.Join(n.runtime.Dir, "kubelet"), LogDir: filepath.Join(n.runtime.Dir, "logs"),
		CgroupParent: n.runtime.CgroupParent, PodPids: 64, ResolvConf: "/etc/resolv.conf", Recorder: n.events,
	})
	must(err)
	factory.Start(ctx.Done())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := manager.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	n.stop = func() {
		cancel()
		<-done
	}
}

func (n *realNode) create(text string) {
	n.t.Helper()
	pod := podFrom(n.t, text)
	pod.Spec.HostNetwork = true // no CNI plugin in this test
	everyContainer(pod, func(c *corev1.Container) { c.Image = critest.Busybox })
	if _, err := n.client.CoreV1().Pods("default").Create(n.t.Context(), pod, metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// eventually waits until the pod "web" satisfies ok; nil is a pod that is gone.
func (n *realNode) eventually(what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	n.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		pod, err := n.client.CoreV1().Pods("default").Get(n.t.Context(), "web", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			pod = nil
		} else if err != nil {
			n.t.Fatal(err)
		}
		if ok(pod) {
			return pod
		}
		if time.Now().After(deadline) {
			status := "gone"
			if pod != nil {
				status = printStatus(&pod.Status)
			}
			n.t.Fatalf("waited in vain until the pod %s; it is\n%s", what, status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *realNode) delete() {
	n.t.Helper()
	pod := n.eventually("exists", func(p *corev1.Pod) bool { return p != nil })
	grace, now := int64(1), metav1.Now()
	pod.DeletionGracePeriodSeconds, pod.DeletionTimestamp = &grace, &now
	if _, err := n.client.CoreV1().Pods("default").Update(n.t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("is gone", func(p *corev1.Pod) bool { return p == nil })
}

// wantNothingLeft checks that the node has forgotten every pod.
func (n *realNode) wantNothingLeft() {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		left := n.left()
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("left behind:\n%s", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *realNode) left() string {
	var out []string
	sandboxes, err := n.runtime.Sandboxes(n.t.Context(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, s := range sandboxes {
		out = append(out, "sandbox "+s.Metadata.Name)
	}
	for _, dir := range []string{"kubelet/pods", "logs"} {
		entries, _ := os.ReadDir(filepath.Join(n.runtime.Dir, dir))
		for _, e := range entries {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	cgroups, err := HostCgroups().Pods(n.runtime.CgroupParent)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, path := range cgroups {
		out = append(out, "cgroup "+path)
	}
	return strings.Join(out, "\n")
}

func isReady(p *corev1.Pod) bool {
	c := conditionOf(&p.Status, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

func TestRealPodFromInitToDeletion(t *testing.T) {
	n := newRealNode(t)
	n.create(`
status: {qosClass: Burstable}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: shared, emptyDir: {}}]
  hostAliases: [{ip: 10.1.2.3, hostnames: [alias.test]}]
  initContainers:
  - name: init
    command: [sh, -c, "echo from $(WHO) > /shared/file"]
    env: [{name: WHO, value: init}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: app
    command: [sh, -c, "cat /shared/file; grep alias /etc/hosts; echo $POD $IP; touch /tmp/ready; exec sleep 1000"]
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    resources: {limits: {memory: 64Mi, cpu: 500m}, requests: {memory: 32Mi, cpu: 100m}}
    volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
`)
	pod := n.eventually("is ready", func(p *corev1.Pod) bool { return p != nil && isReady(p) })
	if got, want := printStatus(&pod.Status), "Running [ContainersReady Initialized PodReadyToStartContainers Ready]\n"+
		"init: terminated 0 Completed, ready\napp: running, ready\n"; got != want {
		t.Errorf("status is\n%swant\n%s", got, want)
	}
	log, err := os.ReadFile(filepath.Join(n.runtime.Dir, "logs/default_web_uid-web/app/0.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"F from init", "alias.test", "F web 127.0.0.1"} {
		if !strings.Contains(string(log), line) {
			t.Errorf("log lacks %q:\n%s", line, log)
		}
	}
	wantLimit(t, n.runtime.CgroupParent+"/kubepods/burstable/poduid-web", 64<<20)

	id := pod.Status.ContainerStatuses[0].ContainerID
	n.stop()
	n.start()
	time.Sleep(2 * time.Second)
	pod = n.eventually("is still ready", func(p *corev1.Pod) bool { return p != nil && isReady(p) })
	if pod.Status.ContainerStatuses[0].ContainerID != id {
		t.Error("a restarted agent restarted the container")
	}
	n.delete()
	n.wantNothingLeft()
}

// wantLimit compares the memory limit of a cgroup, in bytes.
func wantLimit(t *testing.T, cgroup string, want int64) {
	t.Helper()
	for _, file := range []string{"/sys/fs/cgroup/memory" + cgroup + "/memory.limit_in_bytes", "/sys/fs/cgroup" + cgroup + "/memory.max"} {
		if data, err := os.ReadFile(file); err == nil {
			if got := strings.TrimSpace(string(data)); got != "67108864" {
				t.Errorf("%s is %s, want %d", file, got, want)
			}
			return
		}
	}
	t.Errorf("cgroup %s is not there", cgroup)
}

func TestRealContainerLeavesAMessageAndIsRestarted(t *testing.T) {
	n := newRealNode(t)
	n.create(`
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    terminationMessagePath: /dev/termination-log
    command: [sh, -c, "echo last words > /dev/termination-log; sleep 1; exit 7"]
`)
	pod := n.eventually("has restarted", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 7 || last.Message != "last words\n" || last.Reason != "Error" {
		t.Errorf("last state is %+v", last)
	}
	n.stop()
	if err := n.client.CoreV1().Pods("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.wantNothingLeft()
}

func TestRealContainerFailsItsLivenessProbe(t *testing.T) {
	n := newRealNode(t)
	n.create(`
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    command: [sleep, "1000"]
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}
`)
	n.eventually("has restarted", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	n.delete()
	n.wantNothingLeft()
}

func TestRealPodOutlivesItsRuntimesDeath(t *testing.T) {
	n := newRealNode(t)
	n.create(`spec: {terminationGracePeriodSeconds: 1, containers: [{name: app, command: [sleep, "1000"]}]}`)
	pod := n.eventually("is ready", func(p *corev1.Pod) bool { return p != nil && isReady(p) })
	n.runtime.KillDaemon()
	n.runtime.StartDaemon()
	time.Sleep(2 * time.Second)
	after := n.eventually("is ready", func(p *corev1.Pod) bool { return p != nil && isReady(p) })
	if after.Status.ContainerStatuses[0].ContainerID != pod.Status.ContainerStatuses[0].ContainerID {
		t.Error("the container was restarted")
	}
	n.delete()
	n.wantNothingLeft()
}
