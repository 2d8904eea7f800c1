package endpoints

//lint:file-ignore SA1019 programs still read Endpoints

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

func service(edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector:   map[string]string{"app": "web"},
			ClusterIP:  "10.96.0.1",
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(80)}},
		},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func pod(name, ip string, edits ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

func unready(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }

// named gives the pod a port of that name.
func named(name string, number int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP})
	}
}

func ports(names ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = nil
		for i, name := range names {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Port: int32(i + 1), Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString(name)})
		}
	}
}

// subset has addresses, unready ones and ports, each as words; a port is a
// number, or name=number.
func subset(ready, notReady, ports string) corev1.EndpointSubset {
	var s corev1.EndpointSubset
	addresses := func(text string) (list []corev1.EndpointAddress) {
		for _, ip := range strings.Fields(text) {
			list = append(list, corev1.EndpointAddress{IP: ip})
		}
		return list
	}
	s.Addresses, s.NotReadyAddresses = addresses(ready), addresses(notReady)
	for _, word := range strings.Fields(ports) {
		name, number, found := strings.Cut(word, "=")
		if !found {
			name, number = "", word
		}
		p := corev1.EndpointPort{Name: name, Protocol: corev1.ProtocolTCP}
		if _, err := fmt.Sscan(number, &p.Port); err != nil {
			panic(err)
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

// show prints subsets as "[ready | not ready]:ports".
func show(subsets []corev1.EndpointSubset) string {
	addresses := func(list []corev1.EndpointAddress) string {
		var words []string
		for _, a := range list {
			words = append(words, strings.TrimPrefix(a.Hostname+"@"+a.IP, "@"))
		}
		return strings.Join(append(words, []string{"-"}[:max(0, 1-len(words))]...), " ")
	}
	var all []string
	for _, s := range subsets {
		var numbers []string
		for _, p := range s.Ports {
			numbers = append(numbers, strings.TrimPrefix(fmt.Sprintf("%s=%d", p.Name, p.Port), "="))
		}
		all = append(all, fmt.Sprintf("[%s | %s]:%s", addresses(s.Addresses), addresses(s.NotReadyAddresses), strings.Join(numbers, ",")))
	}
	return strings.Join(all, " ")
}

func TestSubsetsOfAService(t *testing.T) {
	headless := func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }
	evenUnready := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
	ipv6First := func(s *corev1.Service) {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	}
	noFamilies := func(s *corev1.Service) { s.Spec.IPFamilies = nil }
	bothFamilies := func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00::1"}) }
	deleted := func(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }
	phase := func(phase corev1.PodPhase) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.Phase = phase }
	}
	hostname := func(host, subdomain string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = host, subdomain }
	}
	cases := []struct {
		name    string
		service *corev1.Service
		pods    []*corev1.Pod
		want    string
	}{
		{"no pods, no subsets", service(), nil, ""},
		{"ready pods and others share a subset", service(), []*corev1.Pod{pod("b", "10.0.0.2"), pod("c", "10.0.0.3", unready), pod("a", "10.0.0.1")}, "[10.0.0.1 10.0.0.2 | 10.0.0.3]:80"},
		{"unready pods are ready if the Service wants them so", service(evenUnready), []*corev1.Pod{pod("a", "10.0.0.1", unready)}, "[10.0.0.1 | -]:80"},
		{"terminating pods are left out", service(), []*corev1.Pod{pod("a", "10.0.0.1", deleted)}, ""},
		{"unless the Service wants unready ones", service(evenUnready), []*corev1.Pod{pod("a", "10.0.0.1", deleted)}, "[10.0.0.1 | -]:80"},
		{"pods that have ended are left out in any case", service(evenUnready), []*corev1.Pod{pod("a", "10.0.0.1", phase(corev1.PodSucceeded)), pod("b", "10.0.0.2", phase(corev1.PodFailed))}, ""},
		{"pods without an address are left out", service(), []*corev1.Pod{pod("a", "", func(p *corev1.Pod) { p.Status.PodIPs = nil })}, ""},
		{"an address in an old spelling is corrected", service(), []*corev1.Pod{pod("a", "10.0.0.01")}, "[10.0.0.1 | -]:80"},
		{"of two families the Service's first is shown", service(ipv6First), []*corev1.Pod{pod("a", "10.0.0.1", bothFamilies)}, "[fd00::1 | -]:80"},
		{"pods without that family are left out", service(ipv6First), []*corev1.Pod{pod("a", "10.0.0.1")}, ""},
		{"without families that of its own address counts", service(noFamilies, func(s *corev1.Service) { s.Spec.ClusterIP = "fd00:96::1" }), []*corev1.Pod{pod("a", "10.0.0.1", bothFamilies)}, "[fd00::1 | -]:80"},
		{"headless and without families that of the pod counts", service(noFamilies, headless), []*corev1.Pod{pod("a", "10.0.0.1", bothFamilies)}, "[10.0.0.1 | -]:80"},
		{"a pod in the Service's subdomain has its host name", service(headless), []*corev1.Pod{pod("a", "10.0.0.1", hostname("a", "web"))}, "[a@10.0.0.1 | -]:80"},
		{"in another subdomain it has none", service(headless), []*corev1.Pod{pod("a", "10.0.0.1", hostname("a", "db"))}, "[10.0.0.1 | -]:80"},
		{"a headless Service may have no ports", service(headless, ports()), []*corev1.Pod{pod("a", "10.0.0.1")}, "[10.0.0.1 | -]:"},
		{"any other without ports reaches nothing", service(ports()), []*corev1.Pod{pod("a", "10.0.0.1")}, ""},
		{"several ports share their addresses", service(ports("http", "admin")), []*corev1.Pod{pod("a", "10.0.0.1", named("http", 80), named("admin", 90)), pod("b", "10.0.0.2", named("admin", 90), named("http", 80))}, "[10.0.0.1 10.0.0.2 | -]:http=80,admin=90"},
		{"a port name means another number in another pod", service(ports("http", "admin")), []*corev1.Pod{pod("a", "10.0.0.1", named("http", 80), named("admin", 90)), pod("b", "10.0.0.2", named("http", 81), named("admin", 90))}, "[10.0.0.1 | -]:http=80 [10.0.0.2 | -]:http=81 [10.0.0.1 10.0.0.2 | -]:admin=90"},
		{"a port that a pod does not have is left out for it", service(ports("http", "admin")), []*corev1.Pod{pod("a", "10.0.0.1", named("http", 80)), pod("b", "10.0.0.2")}, "[10.0.0.1 | -]:http=80"},
		{"pods on one host network are two addresses", service(), []*corev1.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.1")}, "[10.0.0.1 10.0.0.1 | -]:80"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for range 5 { // in any order
				if got := show(subsetsOf(c.service, c.pods)); got != c.want {
					t.Fatalf("got %s, want %s", got, c.want)
				}
				rand.Shuffle(len(c.pods), func(i, j int) { c.pods[i], c.pods[j] = c.pods[j], c.pods[i] })
			}
		})
	}
}

func TestAddressNamesItsPodAndNode(t *testing.T) {
	a := subsetsOf(service(), []*corev1.Pod{pod("a", "10.0.0.1")})[0].Addresses[0]
	if *a.NodeName != "n" || *a.TargetRef != (corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: "a", UID: "a"}) {
		t.Errorf("%+v", a)
	}
}

func TestApplicationProtocolIsKept(t *testing.T) {
	s := service(func(s *corev1.Service) { s.Spec.Ports[0].AppProtocol = new("kubernetes.io/h2c") })
	if p := subsetsOf(s, []*corev1.Pod{pod("a", "10.0.0.1")})[0].Ports[0]; p.AppProtocol == nil || *p.AppProtocol != "kubernetes.io/h2c" {
		t.Errorf("%+v", p)
	}
}

func TestCanonical(t *testing.T) {
	cases := []struct {
		name string
		in   []corev1.EndpointSubset
		want string
	}{
		{"subsets with the same ports become one", []corev1.EndpointSubset{subset("10.0.0.2", "", "80"), subset("10.0.0.1", "10.0.0.3", "80")}, "[10.0.0.1 10.0.0.2 | 10.0.0.3]:80"},
		{"subsets with the same addresses become one", []corev1.EndpointSubset{subset("10.0.0.1", "", "http=80"), subset("10.0.0.1", "", "admin=90")}, "[10.0.0.1 | -]:http=80,admin=90"},
		{"an address twice is one", []corev1.EndpointSubset{subset("10.0.0.1 10.0.0.1", "", "80")}, "[10.0.0.1 | -]:80"},
		{"not ready wins", []corev1.EndpointSubset{subset("10.0.0.1", "", "80"), subset("", "10.0.0.1", "80")}, "[- | 10.0.0.1]:80"},
		{"an address may be ready on one port only", []corev1.EndpointSubset{subset("10.0.0.1", "", "80"), subset("", "10.0.0.1", "90")}, "[10.0.0.1 | -]:80 [- | 10.0.0.1]:90"},
		{"ports without addresses are nothing", []corev1.EndpointSubset{subset("", "", "80")}, ""},
		{"no ports are kept as such", []corev1.EndpointSubset{subset("10.0.0.1", "", "")}, "[10.0.0.1 | -]:"},
		{"addresses of other ports are told apart", []corev1.EndpointSubset{subset("10.0.0.1", "", "90"), subset("10.0.0.1 10.0.0.2", "", "80")}, "[10.0.0.1 10.0.0.2 | -]:80 [10.0.0.1 | -]:90"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := Canonical(c.in)
			if show(got) != c.want {
				t.Errorf("got %s, want %s", show(got), c.want)
			}
			if again := Canonical(got); show(again) != show(got) {
				t.Errorf("again: %s", show(again))
			}
		})
	}
}

// reached lists every address and port of subsets, and whether it is ready.
func reached(subsets []corev1.EndpointSubset) map[string]bool {
	all := map[string]bool{}
	add := func(addresses []corev1.EndpointAddress, ports []corev1.EndpointPort, ready bool) {
		for _, a := range addresses {
			for _, p := range ports {
				key := fmt.Sprintf("%s:%s=%d", a.IP, p.Name, p.Port)
				known, ok := all[key]
				all[key] = ready && (known || !ok)
			}
		}
	}
	for _, s := range subsets {
		add(s.Addresses, s.Ports, true)
		add(s.NotReadyAddresses, s.Ports, false)
	}
	return all
}

func TestCanonicalReachesTheSameInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := func(from ...string) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom(from), 0, 4).Draw(t, "words"), " ")
		}
		var in []corev1.EndpointSubset
		for range rapid.IntRange(0, 5).Draw(t, "subsets") {
			ips := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"}
			in = append(in, subset(words(ips...), words(ips...), "a=80 "+words("a=80", "a=81", "b=80", "b=90")))
		}
		got := Canonical(in)
		if !maps.Equal(reached(in), reached(got)) {
			t.Fatalf("%s became %s", show(in), show(got))
		}
		ports := map[string]int{}
		for _, s := range got {
			for _, p := range s.Ports {
				ports[p.String()]++
			}
		}
		for p, n := range ports {
			if n != 1 {
				t.Fatalf("port %s is in %d subsets of %s", p, n, show(got))
			}
		}
		shuffled := rapid.Permutation(in).Draw(t, "shuffled")
		if again := Canonical(shuffled); show(again) != show(got) {
			t.Fatalf("in another order %s, not %s", show(again), show(got))
		}
	})
}

func TestTruncateKeepsReadyAddressesFirstAndSharesFairly(t *testing.T) {
	many := func(n int) (list []corev1.EndpointAddress) {
		for i := range n {
			list = append(list, corev1.EndpointAddress{IP: fmt.Sprintf("10.0.%d.%d", i/250, i%250)})
		}
		return list
	}
	cases := []struct {
		name      string
		in        [][2]int // ready and unready addresses of each subset
		truncated bool
		want      string
	}{
		{"a thousand fit", [][2]int{{600, 400}}, false, "[[600 400]]"},
		{"ready ones stay, others are cut", [][2]int{{600, 500}}, true, "[[600 400]]"},
		{"too many ready ones leave no room for others", [][2]int{{1500, 20}, {500, 0}}, true, "[[750 0] [250 0]]"},
		{"unready ones are shared by proportion", [][2]int{{500, 600}, {300, 300}}, true, "[[500 134] [300 66]]"},
		{"only unready ones", [][2]int{{0, 2000}}, true, "[[0 1000]]"},
		{"a subset that is left with nothing goes", [][2]int{{1500, 0}, {0, 20}}, true, "[[1000 0]]"},
		{"exactly a thousand ready", [][2]int{{1000, 1}}, true, "[[1000 0]]"},
		{"what is rounded up is taken from the last", [][2]int{{1001, 0}, {1001, 0}, {1001, 0}}, true, "[[334 0] [334 0] [332 0]]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var subsets []corev1.EndpointSubset
			for _, n := range c.in {
				subsets = append(subsets, corev1.EndpointSubset{Addresses: many(n[0]), NotReadyAddresses: many(n[1])})
			}
			subsets, got := truncate(subsets)
			var sizes [][2]int
			for _, s := range subsets {
				sizes = append(sizes, [2]int{len(s.Addresses), len(s.NotReadyAddresses)})
			}
			if got != c.truncated || fmt.Sprint(sizes) != c.want {
				t.Errorf("truncated %t, %v, want %s", got, sizes, c.want)
			}
		})
	}
}
