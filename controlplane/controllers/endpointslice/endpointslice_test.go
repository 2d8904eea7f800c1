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
	"k8s.io/apimachinery/pkg/api/resource"
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
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}
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

func (w world) slices() []discoveryv1.EndpointSlice {
	w.t.Helper()
	w.Pass(2 * time.Second)
	return testcluster.Must[*discoveryv1.EndpointSliceList](w.t)(w.Client.DiscoveryV1().EndpointSlices("ns").List(w.t.Context(), metav1.ListOptions{})).Items
}

func (w world) edit(change func(*corev1.Service)) {
	w.t.Helper()
	s := testcluster.Must[*corev1.Service](w.t)(w.Client.CoreV1().Services("ns").Get(w.t.Context(), "web", metav1.GetOptions{}))
	change(s)
	testcluster.Must[*corev1.Service](w.t)(w.Client.CoreV1().Services("ns").Update(w.t.Context(), s, metav1.UpdateOptions{}))
}

func TestSliceThatIsGivenAwayIsReplaced(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"to another manager": {discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: "me"},
		"to another Service": {discoveryv1.LabelServiceName: "other", discoveryv1.LabelManagedBy: managedBy},
		"to nobody":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w world) {
				w.service(func(*corev1.Service) {})
				w.pod("a", "10.244.0.1", true)
				given := w.slices()[0]
				given.Labels = labels
				testcluster.Must[*discoveryv1.EndpointSlice](t)(w.Client.DiscoveryV1().EndpointSlices("ns").Update(t.Context(), &given, metav1.UpdateOptions{}))
				ours := 0
				for _, s := range w.slices() {
					if s.Labels[discoveryv1.LabelServiceName] == "web" && s.Labels[discoveryv1.LabelManagedBy] == managedBy {
						ours++
					}
				}
				if ours != 1 {
					t.Errorf("%d slices of ours", ours)
				}
			})
		})
	}
}

func TestSliceCarriesTheLabelsOfItsService(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone })
		_, headless := w.slices()[0].Labels[corev1.IsHeadlessService]
		if !headless {
			t.Error("the slice of a headless Service does not say so")
		}
		w.edit(func(s *corev1.Service) { s.Labels = map[string]string{"tier": "front"} })
		if got := w.slices()[0].Labels["tier"]; got != "front" {
			t.Errorf("label %q", got)
		}
	})
}

func TestUnreadyPodThatEndsLeaves(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(*corev1.Service) {})
		p := w.pod("a", "10.244.0.1", false)
		w.expect("10.244.0.1 false/false/false")
		w.SetPhase(p, corev1.PodFailed)
		w.expect("")
	})
}

func TestTrafficDistributionBecomesHints(t *testing.T) {
	cases := []struct{ distribution, want string }{
		{"", "[] []"},
		{corev1.ServiceTrafficDistributionPreferClose, "[z] []"},
		{corev1.ServiceTrafficDistributionPreferSameZone, "[z] []"},
		{corev1.ServiceTrafficDistributionPreferSameNode, "[z] [n]"},
	}
	inWorld(t, func(w world) {
		w.service(func(*corev1.Service) {})
		w.pod("a", "10.244.0.1", true)
		for _, c := range cases {
			w.edit(func(s *corev1.Service) {
				if s.Spec.TrafficDistribution = nil; c.distribution != "" {
					s.Spec.TrafficDistribution = &c.distribution
				}
			})
			var zones, nodes []string
			if hints := w.slices()[0].Endpoints[0].Hints; hints != nil {
				for _, z := range hints.ForZones {
					zones = append(zones, z.Name)
				}
				for _, n := range hints.ForNodes {
					nodes = append(nodes, n.Name)
				}
			}
			if got := fmt.Sprint(zones, " ", nodes); got != c.want {
				t.Errorf("%q: hints %s, want %s", c.distribution, got, c.want)
			}
		}
	})
}

func TestEachFamilyHasSlicesOfAHundred(t *testing.T) {
	inWorld(t, func(w world) {
		for i := range 101 {
			p := w.pod(fmt.Sprint("p", i), fmt.Sprint("10.244.0.", i+1), true)
			w.Pass(time.Millisecond)
			p = testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Get(t.Context(), p.Name, metav1.GetOptions{}))
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: fmt.Sprintf("fd00::%x", i+1)})
			testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}))
		}
		w.service(func(s *corev1.Service) {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPv6Protocol)
		})
		var sizes []string
		for _, s := range w.slices() {
			sizes = append(sizes, fmt.Sprint(s.AddressType, len(s.Endpoints)))
		}
		slices.Sort(sizes)
		if got := strings.Join(sizes, " "); got != "IPv41 IPv4100 IPv61 IPv6100" {
			t.Errorf("slices %s", got)
		}
	})
}

func TestTopologyHintsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		for i := range 12 {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprint("z", i%2)}}}
			node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")}
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
			testcluster.Must[*corev1.Node](t)(w.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}))
			p := w.pod(fmt.Sprint("p", i), fmt.Sprint("10.244.0.", i+1), true)
			p = testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Get(t.Context(), p.Name, metav1.GetOptions{}))
			p.Spec.NodeName = node.Name
			testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), p, metav1.UpdateOptions{}))
		}
		w.service(func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
		})
		c, err := New(w.Env("endpointslice-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Run(c)
		for _, e := range w.slices()[0].Endpoints {
			if e.Hints == nil || len(e.Hints.ForZones) != 1 || e.Hints.ForZones[0].Name != *e.Zone {
				t.Errorf("%s in %s has hints %+v", e.Addresses[0], *e.Zone, e.Hints)
			}
		}
	})
}

func TestSliceOfAServiceThatLosesItsSelectorStays(t *testing.T) {
	inWorld(t, func(w world) {
		w.service(func(*corev1.Service) {})
		w.pod("a", "10.244.0.1", true)
		w.expect("10.244.0.1 true/true/false")
		w.edit(func(s *corev1.Service) { s.Spec.Selector = nil })
		w.Pass(time.Second) // until the controller knows
		w.pod("b", "10.244.0.2", true)
		w.expect("10.244.0.1 true/true/false")
	})
}
