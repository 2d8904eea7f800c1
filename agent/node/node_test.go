package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime answers, or not.
type fakeRuntime struct {
	mu   sync.Mutex
	down bool
}

func (r *fakeRuntime) set(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

func (r *fakeRuntime) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return errors.New("connection refused")
	}
	return nil
}

func (r *fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest, ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "2.4.2"}, r.err()
}

func (r *fakeRuntime) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: true}}},
	}, r.err()
}

func (r *fakeRuntime) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{RepoTags: []string{"a:1"}, Size: 3}}}, r.err()
}

// api is a fake clientset that numbers versions as the API server does, and
// counts status patches.
type api struct {
	*fake.Clientset
	mu      sync.Mutex
	version int
	patches int
}

func newAPI() *api {
	a := &api{Clientset: fake.NewClientset()}
	number := func(action clienttesting.Action) (bool, runtime.Object, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.version++
		switch action := action.(type) {
		case clienttesting.CreateActionImpl:
			object, err := meta.Accessor(action.GetObject())
			if err != nil {
				return true, nil, err
			}
			object.SetUID("uid-1")
			object.SetResourceVersion(strconv.Itoa(a.version))
		case clienttesting.PatchActionImpl:
			a.patches++
		}
		return false, nil, nil
	}
	a.PrependReactor("create", "*", number)
	a.PrependReactor("patch", "nodes", number)
	return a
}

func (a *api) written() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.patches
}

// run starts a Node inside a synctest bubble; stop ends it.
func (a *api) run(t *testing.T, r *fakeRuntime, change func(*Config)) (n *Node, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	factory := informers.NewSharedInformerFactory(a, 0)
	cfg := Config{
		NodeName: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Port: 10250, Version: "test",
		StateDir: t.TempDir(), Client: a, Cluster: factory, Runtime: r, Images: r,
		// The tests' own machine may be under pressure.
		Thresholds: Thresholds{MemoryAvailableBytes: 1, DiskAvailable: 1e-9, InodesAvailable: 1e-9, PIDsAvailable: 1e-9},
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return n, func() {
		cancel()
		<-done
		factory.Shutdown()
		synctest.Wait()
	}
}

func (a *api) node(t *testing.T) *corev1.Node {
	t.Helper()
	node, err := a.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func TestNodeIsRegisteredWithLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		n, stop := a.run(t, &fakeRuntime{}, func(c *Config) {
			c.Labels = map[string]string{"tier": "gold"}
			c.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
		})
		defer stop()
		<-n.Registered()
		time.Sleep(time.Second)
		node := a.node(t)
		if !isReady(node.Status) || node.Labels["tier"] != "gold" || node.Labels["kubernetes.io/hostname"] != "n1" || len(node.Spec.Taints) != 1 {
			t.Errorf("node %v", node)
		}
		lease, err := a.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if *lease.Spec.LeaseDurationSeconds != 40 || len(lease.OwnerReferences) != 1 || lease.OwnerReferences[0].UID != node.UID {
			t.Errorf("lease %v", lease)
		}
		renewed := lease.Spec.RenewTime.Time
		time.Sleep(12 * time.Second)
		lease, _ = a.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "n1", metav1.GetOptions{})
		if !lease.Spec.RenewTime.After(renewed) {
			t.Error("the lease was not renewed within twelve seconds")
		}
	})
}

func TestRestartBringsLabelsAndAnnotationsUpToDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		n, stop := a.run(t, &fakeRuntime{}, func(c *Config) {
			c.Labels, c.Annotations = map[string]string{"tier": "gold"}, map[string]string{"dir": "/old"}
		})
		<-n.Registered()
		stop()
		n, stop = a.run(t, &fakeRuntime{}, func(c *Config) {
			c.Labels, c.Annotations = map[string]string{"tier": "iron"}, map[string]string{"dir": "/new"}
		})
		defer stop()
		<-n.Registered()
		if node := a.node(t); node.Labels["tier"] != "iron" || node.Annotations["dir"] != "/new" {
			t.Errorf("labels %v, annotations %v", node.Labels, node.Annotations)
		}
	})
}

func TestUnchangedStatusIsWrittenEveryFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		n, stop := a.run(t, &fakeRuntime{}, nil)
		defer stop()
		<-n.Registered()
		time.Sleep(time.Minute)
		before := a.written()
		time.Sleep(19 * time.Minute)
		if got := a.written() - before; got < 3 || got > 4 {
			t.Errorf("%d writes in 19 minutes", got)
		}
	})
}

func TestDeletedNodeIsCreatedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		n, stop := a.run(t, &fakeRuntime{}, nil)
		defer stop()
		<-n.Registered()
		time.Sleep(time.Second)
		if err := a.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if !isReady(a.node(t).Status) {
			t.Error("not ready again")
		}
	})
}

func TestRestartFlipsNoCondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, r := newAPI(), &fakeRuntime{}
		n, stop := a.run(t, r, nil)
		<-n.Registered()
		time.Sleep(time.Second)
		before := conditionsText(a.node(t))
		stop()
		time.Sleep(time.Minute)

		r.set(true) // the runtime restarts too
		n, stop = a.run(t, r, func(c *Config) {
			begin := time.Now()
			c.Ready = func() error {
				if time.Since(begin) < 10*time.Second {
					return errors.New("the network is not set up yet")
				}
				return nil
			}
		})
		defer stop()
		<-n.Registered()
		for range 20 {
			time.Sleep(time.Second)
			if after := conditionsText(a.node(t)); after != before {
				t.Fatalf("%s\nbefore the restart: %s", after, before)
			}
			r.set(false)
		}
	})
}

func TestNodeIsReadyAtOnceWhenTheAgentIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		var isReadyNow atomic.Bool
		n, stop := a.run(t, &fakeRuntime{}, func(c *Config) {
			c.Ready = func() error {
				if isReadyNow.Load() {
					return nil
				}
				return errors.New("the pods of this node are not known yet")
			}
		})
		defer stop()
		<-n.Registered()
		time.Sleep(time.Minute)
		node := a.node(t)
		if i := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady }); i < 0 ||
			node.Status.Conditions[i].Status != corev1.ConditionFalse || node.Status.Conditions[i].Message != "the pods of this node are not known yet" {
			t.Errorf("conditions before: %v", node.Status.Conditions)
		}
		isReadyNow.Store(true)
		n.Wake()
		synctest.Wait()
		if !isReady(a.node(t).Status) {
			t.Error("not ready at once")
		}
	})
}

func conditionsText(node *corev1.Node) string {
	var list []string
	for _, c := range node.Status.Conditions {
		list = append(list, fmt.Sprintf("%s=%s since %s", c.Type, c.Status, c.LastTransitionTime.UTC().Format(time.TimeOnly)))
	}
	return strings.Join(list, ", ")
}

func TestRuntimeThatStaysAwayMakesTheNodeNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, r := newAPI(), &fakeRuntime{}
		n, stop := a.run(t, r, nil)
		defer stop()
		<-n.Registered()
		time.Sleep(time.Second)
		r.set(true)
		time.Sleep(25 * time.Second)
		if !isReady(a.node(t).Status) {
			t.Error("not ready after 25 s without the runtime")
		}
		time.Sleep(30 * time.Second)
		if isReady(a.node(t).Status) {
			t.Error("still ready after 55 s without the runtime")
		}
		r.set(false)
		time.Sleep(3 * time.Second)
		if !isReady(a.node(t).Status) {
			t.Error("not ready 3 s after the runtime came back")
		}
	})
}

func TestConfigurationIsChecked(t *testing.T) {
	_, err := New(Config{NodeName: "Bad_Name", DeclaredFeatures: []string{"TimeTravel"}, Labels: map[string]string{"kubernetes.io/x": "1"}})
	for _, want := range []string{"Bad_Name", "no node address", "client", "TimeTravel", "kubernetes.io"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %s", err, want)
		}
	}
}
