package pods

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"weft.dev/weft/agent/cri"
	"weft.dev/weft/agent/probes"
	"weft.dev/weft/agent/volumes"
)

// cluster is a node with everything around it made up: the API server, the
// runtime, volumes, probes and cgroups hold their state in memory.
type cluster struct {
	t       *testing.T
	client  *fake.Clientset
	runtime *cri.Fake
	volumes *fakeVolumes
	objects *fakeObjects
	prober  *fakeProber
	cgroups *fakeCgroups
	events  *record.FakeRecorder
	dir     string

	manager *Manager
	onReady func()
	stop    func()
}

// newCluster starts a node "n1"; it must be called in a synctest bubble.
func newCluster(t *testing.T) *cluster {
	c := &cluster{
		t: t, dir: t.TempDir(),
		client: fake.NewClientset(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"kubernetes.io/hostname": "n1"}},
			Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10")}},
		}),
		runtime: &cri.Fake{Missing: map[string]bool{}},
		volumes: &fakeVolumes{mounted: map[types.UID]bool{}},
		objects: &fakeObjects{configMaps: map[string]*corev1.ConfigMap{}},
		prober:  &fakeProber{results: map[string]probes.Result{}},
		cgroups: &fakeCgroups{pods: map[string]bool{}},
		events:  record.NewFakeRecorder(1000),
	}
	c.start()
	return c
}

// start starts the agent, as after a restart if it was stopped before.
func (c *cluster) start() {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(c.client, 0)
	manager, err := New(Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("172.30.0.1")},
		Client: c.client, Local: factory, Cluster: factory,
		Runtime: c.runtime, Images: c.runtime, Volumes: c.volumes, Objects: c.objects, Prober: c.prober, Cgroups: c.cgroups,
		KubeletDir: filepath.Join(c.dir, "kubelet"), LogDir: filepath.Join(c.dir, "logs"), CgroupParent: "/weft/n1",
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, ClusterDomain: "cluster.local",
		Recorder: c.events, OnReady: c.onReady,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.manager = manager
	c.prober.changed = manager.Changed
	factory.Start(ctx.Done())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := manager.Run(ctx); err != nil {
			c.t.Error(err)
		}
	}()
	c.stop = func() {
		cancel()
		<-done
		factory.Shutdown()
	}
	sleep(time.Second) // informers look every 100 ms whether they have synced
}

// inCluster runs a test against a fresh node, in made-up time.
func inCluster(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer func() { c.stop() }()
		test(t, c)
	})
}

// apply creates or updates a pod written as YAML and waits for the agent.
func (c *cluster) apply(text string) *corev1.Pod {
	c.t.Helper()
	pod := podFrom(c.t, text)
	api := c.client.CoreV1().Pods(pod.Namespace)
	created, err := api.Create(context.Background(), pod, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	return created
}

func podFrom(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), pod); err != nil {
		t.Fatal(err)
	}
	if pod.Name == "" {
		pod.Name = "web"
	}
	pod.Namespace, pod.UID = "default", types.UID("uid-"+pod.Name)
	pod.Spec.NodeName = "n1"
	pod.Generation = 1
	if pod.Status.Phase == "" {
		pod.Status.Phase = corev1.PodPending
	}
	if pod.Status.QOSClass == "" {
		pod.Status.QOSClass = corev1.PodQOSBestEffort
	}
	everyContainer(pod, func(c *corev1.Container) {
		if c.Image == "" {
			c.Image = "busybox:1"
		}
	})
	return pod
}

// get returns the pod "web" as the API has it, nil if it is gone.
func (c *cluster) get() *corev1.Pod {
	c.t.Helper()
	synctest.Wait()
	pod, err := c.client.CoreV1().Pods("default").Get(context.Background(), "web", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return pod
}

// change updates the pod "web".
func (c *cluster) change(f func(*corev1.Pod)) {
	c.t.Helper()
	pod := c.get()
	f(pod)
	if _, err := c.client.CoreV1().Pods("default").Update(context.Background(), pod, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// delete begins the graceful deletion of the pod "web".
func (c *cluster) delete(graceSeconds int64) {
	c.t.Helper()
	c.change(func(pod *corev1.Pod) {
		at := metav1.NewTime(time.Now().Add(time.Duration(graceSeconds) * time.Second))
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &graceSeconds
	})
}

func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantRuntime compares what the runtime holds.
func (c *cluster) wantRuntime(want string) {
	c.t.Helper()
	synctest.Wait()
	if got := c.runtime.String(); strings.TrimSpace(got) != strings.TrimSpace(want) {
		c.t.Errorf("runtime holds\n%swant\n%s", got, want)
	}
}

// wantStatus compares the pod's status, one line per statement.
func (c *cluster) wantStatus(want string) {
	c.t.Helper()
	pod := c.get()
	if pod == nil {
		c.t.Fatal("pod is gone")
	}
	if got := printStatus(&pod.Status); strings.TrimSpace(got) != strings.TrimSpace(want) {
		c.t.Errorf("status is\n%swant\n%s", got, want)
	}
}

// printStatus prints a status: phase, conditions that are true, containers.
func printStatus(s *corev1.PodStatus) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s", s.Phase)
	if s.Reason != "" {
		fmt.Fprintf(&out, " %s", s.Reason)
	}
	var conditions []string
	for _, condition := range s.Conditions {
		if condition.Status == corev1.ConditionTrue && condition.Type != corev1.PodScheduled {
			conditions = append(conditions, string(condition.Type))
		}
	}
	slices.Sort(conditions)
	fmt.Fprintf(&out, " %s\n", conditions)
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for _, st := range list {
			fmt.Fprintf(&out, "%s: %s", st.Name, printState(st.State))
			if st.RestartCount > 0 {
				fmt.Fprintf(&out, ", restarts %d", st.RestartCount)
			}
			if last := printState(st.LastTerminationState); last != "" {
				fmt.Fprintf(&out, ", last %s", last)
			}
			if st.Ready {
				out.WriteString(", ready")
			}
			out.WriteString("\n")
		}
	}
	return out.String()
}

func printState(s corev1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running"
	case s.Waiting != nil:
		return "waiting " + s.Waiting.Reason
	case s.Terminated != nil:
		return fmt.Sprintf("terminated %d %s", s.Terminated.ExitCode, s.Terminated.Reason)
	}
	return ""
}

// drainEvents returns what was reported so far.
func (c *cluster) drainEvents() []string {
	var out []string
	for {
		select {
		case e := <-c.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

func (c *cluster) wantEvent(part string) {
	c.t.Helper()
	synctest.Wait()
	all := c.drainEvents()
	if !slices.ContainsFunc(all, func(e string) bool { return strings.Contains(e, part) }) {
		c.t.Errorf("no event %q among\n%s", part, strings.Join(all, "\n"))
	}
}

// leftovers lists what the node still holds of any pod.
func (c *cluster) leftovers() string {
	var out []string
	out = append(out, c.runtime.String())
	for uid := range c.volumes.snapshot() {
		out = append(out, "volumes of "+string(uid))
	}
	out = append(out, c.cgroups.list()...)
	for _, dir := range []string{"kubelet/pods", "logs"} {
		entries, err := os.ReadDir(filepath.Join(c.dir, dir))
		if err != nil && !os.IsNotExist(err) {
			c.t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	return strings.TrimSpace(strings.Join(out, "\n"))
}

// fakeVolumes remembers which pods are mounted.
type fakeVolumes struct {
	mu      sync.Mutex
	mounted map[types.UID]bool
	fail    error
}

func (v *fakeVolumes) failWith(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fail = err
}

func (v *fakeVolumes) Mount(_ context.Context, pod *corev1.Pod) (map[string]volumes.Mount, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil {
		return nil, v.fail
	}
	v.mounted[pod.UID] = true
	out := map[string]volumes.Mount{}
	for _, volume := range pod.Spec.Volumes {
		out[volume.Name] = volumes.Mount{HostPath: "/volumes/" + volume.Name}
	}
	return out, nil
}

func (v *fakeVolumes) Unmount(_ context.Context, uid types.UID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mounted, uid)
	return nil
}

func (v *fakeVolumes) Orphans() ([]types.UID, error) {
	return slices.Collect(maps.Keys(v.snapshot())), nil
}

func (v *fakeVolumes) snapshot() map[types.UID]bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.mounted)
}

func (v *fakeVolumes) SubPath(_ context.Context, _ *corev1.Pod, _ *corev1.Container, m corev1.VolumeMount) (string, func(), error) {
	return "/volumes/" + m.Name + "/" + m.SubPath, nil, nil
}

// fakeObjects holds ConfigMaps by name; every Secret is missing.
type fakeObjects struct {
	mu         sync.Mutex
	configMaps map[string]*corev1.ConfigMap
}

func (o *fakeObjects) Acquire(*corev1.Pod) {}
func (o *fakeObjects) Release(types.UID)   {}

func (o *fakeObjects) set(name string, data map[string]string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.configMaps[name] = &corev1.ConfigMap{Data: data}
}

func (o *fakeObjects) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if object := o.configMaps[name]; object != nil {
		return object, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (o *fakeObjects) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

// fakeProber gives the results that a test sets for container names.
type fakeProber struct {
	mu      sync.Mutex
	targets []probes.Target
	results map[string]probes.Result // "container ID/kind"
	changed func(types.UID)
}

func (p *fakeProber) Sync(targets []probes.Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = targets
}

func (p *fakeProber) Remove(types.UID) { p.Sync(nil) }

func (p *fakeProber) Result(id string, kind probes.Kind) (probes.Result, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	result, known := p.results[id+"/"+string(kind)]
	return result, known
}

// set gives the running container of a name a result.
func (p *fakeProber) set(t *testing.T, name string, kind probes.Kind, result probes.Result) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	i := slices.IndexFunc(p.targets, func(t probes.Target) bool { return t.Container.Name == name })
	if i < 0 {
		p.mu.Unlock()
		t.Fatalf("container %s is not probed", name)
	}
	uid := p.targets[i].PodUID
	p.results[p.targets[i].ContainerID+"/"+string(kind)] = result
	p.mu.Unlock()
	p.changed(uid)
	synctest.Wait()
}

// fakeCgroups remembers cgroups by path, and each change of their limits.
type fakeCgroups struct {
	mu     sync.Mutex
	pods   map[string]bool
	limits []string
}

func (g *fakeCgroups) Ensure(path string, limits *runtimeapi.LinuxContainerResources, _ int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pods[path] = true
	g.limits = append(g.limits, printLimits(limits))
	return nil
}

func (g *fakeCgroups) history() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.limits, ", ")
}

// printLimits prints CPU shares, quota in µs, and memory in MiB.
func printLimits(r *runtimeapi.LinuxContainerResources) string {
	return fmt.Sprintf("%d/%d/%dMi", r.CpuShares, limit(r.CpuQuota), limit(r.MemoryLimitInBytes)>>20)
}

func (g *fakeCgroups) Remove(path string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pods, path)
	return nil
}

func (g *fakeCgroups) Pods(string) (map[types.UID]string, error) {
	out := map[types.UID]string{}
	for _, path := range g.list() {
		out[types.UID(strings.TrimPrefix(filepath.Base(path), "pod"))] = path
	}
	return out, nil
}

func (g *fakeCgroups) list() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.pods))
}
