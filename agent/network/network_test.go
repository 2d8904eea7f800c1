package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"weft.dev/weft/agent/desired"
	"weft.dev/weft/cni"
	"weft.dev/weft/cni/wire"
	"weft.dev/weft/dataplane"
)

// kernel is a dataplane that only remembers. failing makes an Apply fail, with
// nothing changed for a plain error.
type kernel struct {
	mu      sync.Mutex
	state   dataplane.State
	applies int
	failing func(dataplane.State) error
	changed chan struct{}
}

func (k *kernel) Apply(_ context.Context, s dataplane.State) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applies++
	defer wake(k.changed)
	if k.failing != nil {
		if err := k.failing(s); err != nil {
			return err
		}
	}
	k.state = s
	return nil
}

func (k *kernel) fail(f func(dataplane.State) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failing = f
}

// pods is what the kernel has, "pod address", sorted.
func (k *kernel) pods() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []string
	for _, p := range k.state.Pods {
		list = append(list, fmt.Sprint(p.Name, " ", p.Addrs[0]))
	}
	slices.Sort(list)
	return list
}

func (k *kernel) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applies
}

// until waits for an Apply after which is() holds.
func (k *kernel) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for !is() {
		select {
		case <-k.changed:
		case <-t.Context().Done():
			t.Fatalf("never: %s; the kernel has %v", what, k.pods())
		}
	}
}

// fakeDevices has every device that the fake kernel was told of.
type fakeDevices struct{ kernel *kernel }

func (fakeDevices) IsNetns(path string) bool    { return strings.HasPrefix(path, "/netns/") }
func (fakeDevices) IsOwnNetns(path string) bool { return path == "/netns/own" }

func (d fakeDevices) Inside(path, name string) (device, error) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	for _, p := range d.kernel.state.Pods {
		if p.Netns == path && p.IfName == name {
			return device{MAC: "02:00:00:00:00:01", MTU: 1450, Addrs: p.Addrs}, nil
		}
	}
	return device{}, errors.New("no such device")
}

func (d fakeDevices) Host(name string) (device, error) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	for _, p := range d.kernel.state.Pods {
		if p.HostIfName == name {
			return device{MAC: "02:00:00:00:00:02", MTU: 1450}, nil
		}
	}
	return device{}, errors.New("no such device")
}

// node is a Network with a fake cluster and kernel.
type node struct {
	*Network
	kernel *kernel
	client *fake.Clientset
	dir    string
	stop   func()
}

func nodeObject(podCIDRs ...string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec:       corev1.NodeSpec{PodCIDRs: podCIDRs},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.1"}}},
	}
}

// create makes a node on dir that does not run yet.
func create(t *testing.T, dir string, plane applier, d devices, objects ...runtime.Object) (*Network, *fake.Clientset, informers.SharedInformerFactory) {
	t.Helper()
	client := fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	n, err := New(Config{
		Settings: desired.Settings{
			NodeName: "a", ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, DNSPort: 10053,
			ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		},
		Cluster:   factory,
		Dataplane: plane,
		StateDir:  dir, SocketPath: filepath.Join(dir, "cni.sock"), DelDir: filepath.Join(dir, "del"),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.devices = d
	return n, client, factory
}

// start runs a node with a fake kernel on dir, until the test or stop ends it.
func start(t *testing.T, dir string, k *kernel, objects ...runtime.Object) *node {
	t.Helper()
	n := startOn(t, dir, k, fakeDevices{k}, objects...)
	n.kernel = k
	return n
}

// startOn is start on any dataplane.
func startOn(t *testing.T, dir string, plane applier, d devices, objects ...runtime.Object) *node {
	t.Helper()
	n, client, factory := create(t, dir, plane, d, objects...)
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			factory.Shutdown()
		})
	}
	t.Cleanup(stop)
	return &node{Network: n, client: client, dir: dir, stop: stop}
}

func newKernel() *kernel { return &kernel{changed: make(chan struct{}, 1)} }

func request(command, id string) wire.Request {
	return wire.Request{
		Command: command, ContainerID: id, Netns: "/netns/" + id, IfName: "eth0",
		Args:   map[string]string{"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "pod-" + id},
		Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"weft"}`),
	}
}

func (n *node) mustAdd(t *testing.T, id string) *types100.Result {
	t.Helper()
	resp := n.handle(t.Context(), request("ADD", id))
	if resp.Error != nil {
		t.Fatal(resp.Error)
	}
	var r types100.Result
	if err := json.Unmarshal(resp.Result, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func (n *node) must(t *testing.T, command, id string) {
	t.Helper()
	if resp := n.handle(t.Context(), request(command, id)); resp.Error != nil {
		t.Fatalf("%s: %v", command, resp.Error)
	}
}

func wantCode(t *testing.T, resp wire.Response, code uint, says string) {
	t.Helper()
	if resp.Error == nil || resp.Error.Code != code || !strings.Contains(resp.Error.Error(), says) {
		t.Errorf("got %+v, want error code %d saying %q", resp.Error, code, says)
	}
}

func TestAddAnswersOnceThePodIsInTheKernel(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24", "fd00:10::/64"))
	r := n.mustAdd(t, "s1")
	if got := n.kernel.pods(); !slices.Equal(got, []string{"default/pod-s1 10.244.1.2"}) {
		t.Errorf("kernel has %v when ADD answers", got)
	}
	got, _ := json.Marshal(r)
	want := `{"cniVersion":"1.1.0",` +
		`"interfaces":[{"mac":"02:00:00:00:00:02","mtu":1450,"name":"` + hostIfName("s1", "eth0") + `"},` +
		`{"mac":"02:00:00:00:00:01","mtu":1450,"name":"eth0","sandbox":"/netns/s1"}],` +
		`"ips":[{"address":"10.244.1.2/32","gateway":"169.254.1.1","interface":1},{"address":"fd00:10::2/128","gateway":"fe80::1","interface":1}],` +
		`"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}]}`
	if string(got) != want {
		t.Errorf("result\n%s\nwant\n%s", got, want)
	}
	n.must(t, "CHECK", "s1")
	n.must(t, "STATUS", "")
}

func TestAddAgainGivesTheSameAddress(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24"))
	first, again := n.mustAdd(t, "s1"), n.mustAdd(t, "s1")
	if got, want := again.IPs[0].Address.String(), first.IPs[0].Address.String(); got != want {
		t.Errorf("first %s, again %s", want, got)
	}
}

func TestDelTakesThePodOutOfTheKernelAndMayBeRepeated(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s1")
	n.must(t, "DEL", "s1")
	n.must(t, "DEL", "s1")
	if got := n.kernel.pods(); len(got) != 0 {
		t.Errorf("the kernel still has %v", got)
	}
	if got := n.pool.Reserved(); len(got) != 0 {
		t.Errorf("addresses still taken: %v", got)
	}
	wantCode(t, n.handle(t.Context(), request("CHECK", "s1")), codeUnknownContainer, "not attached")
}

func TestRestartKeepsSandboxesAndAddresses(t *testing.T) {
	dir, k := t.TempDir(), newKernel()
	n := start(t, dir, k, nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s1")
	n.mustAdd(t, "s2")
	n.stop()
	k.mu.Lock()
	k.state = dataplane.State{}
	k.mu.Unlock()
	n = start(t, dir, k, nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s3")
	want := []string{"default/pod-s1 10.244.1.2", "default/pod-s2 10.244.1.3", "default/pod-s3 10.244.1.4"}
	if got := k.pods(); !slices.Equal(got, want) {
		t.Errorf("kernel has %v, want %v", got, want)
	}
	n.must(t, "CHECK", "s1")
}

func TestDelWhileTheAgentWasAwayIsCaughtUp(t *testing.T) {
	dir, k := t.TempDir(), newKernel()
	n := start(t, dir, k, nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s1")
	n.stop()
	if err := cni.WriteRecord(filepath.Join(dir, "del"), request("DEL", "s1")); err != nil {
		t.Fatal(err)
	}
	start(t, dir, k, nodeObject("10.244.1.0/24"))
	k.until(t, "s1 leaves the kernel", func() bool { return len(k.pods()) == 0 })
	if records, err := cni.Records(filepath.Join(dir, "del")); err != nil || len(records) != 0 {
		t.Errorf("records left: %v, %v", records, err)
	}
}

func TestSandboxesOfARebootedNodeAreNotApplied(t *testing.T) {
	dir, k := t.TempDir(), newKernel()
	s := store{dir: filepath.Join(dir, "sandboxes")}
	if _, err := s.load(); err != nil {
		t.Fatal(err)
	}
	var r record
	r.SandboxID, r.Netns, r.IfName = "old", "/gone/old", "eth0"
	if err := s.save(r); err != nil {
		t.Fatal(err)
	}
	n := start(t, dir, k, nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s1")
	if got := k.pods(); len(got) != 1 {
		t.Errorf("kernel has %v", got)
	}
	n.must(t, "DEL", "old") // the runtime's own clean-up still finds it
}

func TestNodeIsReadyOnceItsKernelIsInLine(t *testing.T) {
	k := newKernel()
	k.fail(func(dataplane.State) error { return errors.New("no uplink") })
	ready := make(chan struct{})
	n, _, factory := create(t, t.TempDir(), k, fakeDevices{k}, nodeObject("10.244.1.0/24"))
	n.cfg.OnReady = func() { close(ready) } // a second call would panic
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "no pod CIDR") {
		t.Errorf("before the first pass: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	factory.Start(ctx.Done())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	k.until(t, "an Apply fails", func() bool { return k.count() > 0 && n.lastError() != nil })
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "no uplink") {
		t.Errorf("while Apply fails: %v", err)
	}
	k.fail(nil)
	<-ready
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	// What goes wrong later is no reason to take the node's pods elsewhere.
	k.fail(func(dataplane.State) error { return errors.New("out of memory") })
	before := k.count()
	wake(n.dirty)
	k.until(t, "a later Apply fails", func() bool { return k.count() > before })
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func (n *Network) lastError() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lastErr
}

func TestServicesThatTheKernelDoesNotTakeHoldUpNoPod(t *testing.T) {
	for what, err := range map[string]error{
		"a Service that does not fit":      &dataplane.ServiceError{Err: errors.New("map services is full")},
		"a device that cannot be removed":  &dataplane.RemovalError{Err: errors.New("device is busy")},
		"both, joined with other wrapping": fmt.Errorf("apply: %w", errors.Join(&dataplane.ServiceError{Err: errors.New("x")}, &dataplane.RemovalError{Err: errors.New("y")})),
	} {
		t.Run(what, func(t *testing.T) {
			k := newKernel()
			k.fail(func(s dataplane.State) error { k.state = s; return err })
			n := start(t, t.TempDir(), k, nodeObject("10.244.1.0/24"))
			n.mustAdd(t, "s1")
			n.must(t, "STATUS", "")
		})
	}
}

func TestOnePodsFailureDoesNotHoldUpOthers(t *testing.T) {
	k := newKernel()
	k.fail(func(s dataplane.State) error {
		var errs []error
		k.state = dataplane.State{}
		for _, p := range s.Pods {
			if p.SandboxID == "bad" {
				errs = append(errs, &dataplane.PodError{SandboxID: "bad", Err: errors.New("netns is broken")})
				continue
			}
			k.state.Pods = append(k.state.Pods, p)
		}
		return errors.Join(errs...)
	})
	n := start(t, t.TempDir(), k, nodeObject("10.244.1.0/24"))
	bad := make(chan wire.Response)
	go func() { bad <- n.handle(context.Background(), request("ADD", "bad")) }()
	n.mustAdd(t, "good")
	wantCode(t, <-bad, codeTryAgainLater, "netns is broken")
	k.until(t, "the bad sandbox is forgotten", func() bool { return len(n.pool.Reserved()) == 1 })
}

func TestAddWaitsWhileTheDataplaneRecovers(t *testing.T) {
	k := newKernel()
	tries := 0
	k.fail(func(dataplane.State) error {
		if tries++; tries < 4 {
			return errors.New("map is busy")
		}
		return nil
	})
	n := start(t, t.TempDir(), k, nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s1")
}

func TestExhaustedPoolAsksToTryAgain(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/30"))
	n.mustAdd(t, "s1")
	wantCode(t, n.handle(t.Context(), request("ADD", "s2")), codeTryAgainLater, "no free pod address")
	n.must(t, "DEL", "s1")
	n.mustAdd(t, "s2")
}

func TestGCDetachesWhatTheRuntimeDoesNotKnow(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24"))
	n.mustAdd(t, "s1")
	n.mustAdd(t, "s2")
	req := request("GC", "")
	req.Config = json.RawMessage(`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{"containerID":"s2","ifname":"eth0"}]}`)
	if resp := n.handle(t.Context(), req); resp.Error != nil {
		t.Fatal(resp.Error)
	}
	if got := n.kernel.pods(); !slices.Equal(got, []string{"default/pod-s2 10.244.1.3"}) {
		t.Errorf("kernel has %v", got)
	}
	if got := n.pool.Reserved(); len(got) != 1 {
		t.Errorf("addresses taken: %v", got)
	}
}

func TestNodeWithoutPodCIDRIsNotReadyUntilItHasOne(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject())
	wantCode(t, n.handle(t.Context(), request("STATUS", "")), codeNotAvailable, "no pod CIDR")
	added := make(chan wire.Response)
	go func() { added <- n.handle(context.Background(), request("ADD", "s1")) }()
	if _, err := n.client.CoreV1().Nodes().Update(t.Context(), nodeObject("10.244.1.0/24"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if resp := <-added; resp.Error != nil {
		t.Fatal(resp.Error)
	}
	n.must(t, "STATUS", "")
}

func TestBrokenDataplaneShowsInStatus(t *testing.T) {
	k := newKernel()
	k.fail(func(dataplane.State) error { return errors.New("no bpffs") })
	n := start(t, t.TempDir(), k, nodeObject("10.244.1.0/24"))
	k.until(t, "the error is known", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.lastErr != nil
	})
	wantCode(t, n.handle(t.Context(), request("STATUS", "")), codeLimited, "no bpffs")
}

func TestServicesReachTheKernel(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24"))
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.20", Ports: []corev1.ServicePort{{Port: 80}}},
	}
	if _, err := n.client.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n.kernel.until(t, "the Service is in the kernel", func() bool {
		n.kernel.mu.Lock()
		defer n.kernel.mu.Unlock()
		return len(n.kernel.state.Services) == 3 // with cluster DNS
	})
}

func TestAddRefuses(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24"))
	taken := request("ADD", "s1")
	taken.Config = json.RawMessage(`{"cniVersion":"1.1.0","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}}`)
	if resp := n.handle(t.Context(), taken); resp.Error != nil {
		t.Fatal(resp.Error)
	}
	mapping := func(s string) json.RawMessage {
		return json.RawMessage(`{"cniVersion":"1.1.0","runtimeConfig":{"portMappings":[` + s + `]}}`)
	}
	for _, tt := range []struct {
		name   string
		change func(*wire.Request)
		code   uint
		says   string
	}{
		{"a path that is no namespace", func(r *wire.Request) { r.Netns = "/etc" }, codeInvalidEnvironment, "CNI_NETNS"},
		{"the node's own namespace", func(r *wire.Request) { r.Netns = "/netns/own" }, codeInvalidEnvironment, "own"},
		{"a second interface of a sandbox", func(r *wire.Request) { r.ContainerID, r.IfName = "s1", "eth1" }, codeInvalidEnvironment, "attached"},
		{"a host port that another pod has", func(r *wire.Request) {
			r.Config = mapping(`{"hostPort":80,"containerPort":1,"protocol":"TCP","hostIP":"172.30.0.1"}`)
		}, codeTryAgainLater, "default/pod-s1"},
		{"a port out of range", func(r *wire.Request) {
			r.Config = mapping(`{"hostPort":70000,"containerPort":1,"protocol":"tcp"}`)
		}, codeInvalidConfig, "portMappings[0].hostPort"},
		{"an unknown protocol", func(r *wire.Request) {
			r.Config = mapping(`{"hostPort":81,"containerPort":1,"protocol":"icmp"}`)
		}, codeInvalidConfig, "portMappings[0].protocol"},
		{"a host address that is none", func(r *wire.Request) {
			r.Config = mapping(`{"hostPort":81,"containerPort":1,"protocol":"udp","hostIP":"x"}`)
		}, codeInvalidConfig, "portMappings[0].hostIP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := request("ADD", "s2")
			tt.change(&req)
			wantCode(t, n.handle(t.Context(), req), tt.code, tt.says)
		})
	}
	if got := n.pool.Reserved(); len(got) != 1 {
		t.Errorf("refused requests keep addresses: %v", got)
	}
}

func TestThePluginReachesTheAgent(t *testing.T) {
	n := start(t, t.TempDir(), newKernel(), nodeObject("10.244.1.0/24"))
	<-n.ready
	run := func(command string) (int, string) {
		env := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": "s1", "CNI_NETNS": "/netns/s1", "CNI_IFNAME": "eth0"}
		var out strings.Builder
		exit := cni.Run(cni.Process{
			Getenv: func(k string) string { return env[k] }, Stdout: &out, Stderr: io.Discard,
			Stdin: strings.NewReader(`{"cniVersion":"1.1.0","name":"weft","socket":"` + n.cfg.SocketPath + `"}`),
		})
		return exit, out.String()
	}
	for _, command := range []string{"ADD", "CHECK", "STATUS", "DEL", "DEL", "GC"} {
		exit, out := run(command)
		if exit != 0 || (command == "ADD") != strings.Contains(out, "10.244.1.2/32") {
			t.Errorf("%s: exit %d, %s", command, exit, out)
		}
	}
}

func TestSplitErrorsFindsThePods(t *testing.T) {
	inner := errors.Join(errors.New("x"), errors.New("y"))
	a, b := &dataplane.PodError{SandboxID: "a", Err: inner}, &dataplane.PodError{SandboxID: "b", Err: errors.New("z")}
	err := fmt.Errorf("apply: %w", errors.Join(a, fmt.Errorf("attach: %w", b), fmt.Errorf("map full: %w", errors.New("E2BIG"))))
	ofPods, other := splitErrors(err)
	if len(ofPods) != 2 || ofPods["a"] == nil || !strings.HasPrefix(ofPods["b"].Error(), "attach:") || other == nil || other.Error() != "map full: E2BIG" {
		t.Errorf("pods %v, other %v", ofPods, other)
	}
}
