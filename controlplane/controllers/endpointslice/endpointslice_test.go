package endpointslice

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		c, err := New(w.Env("endpointslice-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Run(c)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		testcluster.Must[*corev1.Node](t)(w.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}))
		w.Pass(time.Second)
		test(w)
	})
}

func (w world) service(edit func(*corev1.Service)) {
	w.t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector:   map[string]string{"app": "web"},
			ClusterIP:  "10.96.0.1",
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	edit(s)
	testcluster.Must[*corev1.Service](w.t)(w.Client.CoreV1().Services("ns").Create(w.t.Context(), s, metav1.CreateOptions{}))
}

func (w world) pod(name, ip string, ready bool) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n", Hostname: name, Subdomain: "web"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
	p = testcluster.Must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods("ns").Create(w.t.Context(), p, metav1.CreateOptions{}))
	w.SetReady(p, ready)
	return p
}

// endpoints describes all endpoints as "address ready/serving/terminating".
func (w world) endpoints() string {
	w.t.Helper()
	w.Pass(2 * time.Second)
	list := testcluster.Must[*discoveryv1.EndpointSliceList](w.t)(w.Client.DiscoveryV1().EndpointSlices("ns").List(w.t.Context(), metav1.ListOptions{}))
	var words []string
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			words = append(words, fmt.Sprintf("%s %t/%t/%t", e.Addresses[0], *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating))
		}
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

func (w world) expect(want string) {
	w.t.Helper()
	if got := w.endpoints(); got != want {
		w.t.Errorf("endpoints %q, want %q", got, want)
	}
}

func TestEndpointsFollowPods(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(*corev1.Service) {})
		w.expect("")
		a := w.pod("a", "10.244.0.1", true)
		b := w.pod("b", "10.244.0.2", false)
		w.expect("10.244.0.1 true/true/false, 10.244.0.2 false/false/false")
		w.SetReady(b, true)
		w.expect("10.244.0.1 true/true/false, 10.244.0.2 true/true/false")
		if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), a.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("10.244.0.1 false/true/true, 10.244.0.2 true/true/false")
		w.SetPhase(a, corev1.PodSucceeded)
		w.expect("10.244.0.2 true/true/false")
	})
}

func TestKilledPodLeavesWithinOneStep(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(*corev1.Service) {})
		for i := range 20 {
			w.pod(fmt.Sprint("p", i), fmt.Sprint("10.244.0.", i+1), true)
		}
		before := strings.Count(w.endpoints(), "true/true/false")
		if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), "p7", *metav1.NewDeleteOptions(0)); err != nil {
			t.Fatal(err)
		}
		w.Pass(time.Millisecond)
		list := testcluster.Must[*discoveryv1.EndpointSliceList](t)(w.Client.DiscoveryV1().EndpointSlices("ns").List(t.Context(), metav1.ListOptions{}))
		if n := len(list.Items[0].Endpoints); before != 20 || n != 19 {
			t.Errorf("%d endpoints before, %d at once after", before, n)
		}
	})
}

func TestUnreadyAddressesArePublishedIfAskedFor(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true })
		w.pod("a", "10.244.0.1", false)
		w.expect("10.244.0.1 true/false/false")
	})
}

func TestHeadlessEndpointsHaveHostNames(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone })
		w.pod("a", "10.244.0.1", true)
		w.expect("10.244.0.1 true/true/false")
		list := testcluster.Must[*discoveryv1.EndpointSliceList](t)(w.Client.DiscoveryV1().EndpointSlices("ns").List(t.Context(), metav1.ListOptions{}))
		if e := list.Items[0].Endpoints[0]; e.Hostname == nil || *e.Hostname != "a" || *e.NodeName != "n" {
			t.Errorf("endpoint %+v", e)
		}
	})
}

func TestServicesWithoutSelectorAreLeftAlone(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(s *corev1.Service) { s.Spec.Selector = nil })
		w.pod("a", "10.244.0.1", true)
		w.expect("")
	})
}

func TestForeignEditsOfASliceAreUndone(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(*corev1.Service) {})
		w.pod("a", "10.244.0.1", true)
		w.expect("10.244.0.1 true/true/false")
		api := w.Client.DiscoveryV1().EndpointSlices("ns")
		list := testcluster.Must[*discoveryv1.EndpointSliceList](t)(api.List(t.Context(), metav1.ListOptions{}))
		edited := list.Items[0].DeepCopy()
		edited.Endpoints = nil
		testcluster.Must[*discoveryv1.EndpointSlice](t)(api.Update(t.Context(), edited, metav1.UpdateOptions{}))
		w.expect("10.244.0.1 true/true/false")
		if err := api.Delete(t.Context(), edited.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.expect("10.244.0.1 true/true/false")
	})
}
