package endpointslicemirroring

//lint:file-ignore SA1019 users still write Endpoints

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func service(edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

// byHand are Endpoints with one subset for each text, such as
// "10.0.0.1 !10.0.0.2 fd00::1:80,90" where ! is not ready.
func byHand(subsets ...string) *corev1.Endpoints {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "e"}}
	for _, text := range subsets {
		var s corev1.EndpointSubset
		at := strings.LastIndex(text, ":")
		for _, ip := range strings.Fields(text[:at]) {
			if unready, ok := strings.CutPrefix(ip, "!"); ok {
				s.NotReadyAddresses = append(s.NotReadyAddresses, corev1.EndpointAddress{IP: unready})
			} else {
				s.Addresses = append(s.Addresses, corev1.EndpointAddress{IP: ip})
			}
		}
		for _, number := range strings.Split(text[at+1:], ",") {
			p := corev1.EndpointPort{Name: "p" + number, Protocol: corev1.ProtocolTCP}
			if _, err := fmt.Sscan(number, &p.Port); err != nil {
				panic(err)
			}
			s.Ports = append(s.Ports, p)
		}
		e.Subsets = append(e.Subsets, s)
	}
	return e
}

func edited(e *corev1.Endpoints, edit func(*corev1.Endpoints)) *corev1.Endpoints {
	edit(e)
	return e
}

// made are the slices of e as a step creates them, named a, b, ….
func made(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	all := decide(e, service(), nil).Create
	for i, s := range all {
		s.Name, s.ResourceVersion = string(rune('a'+i)), "1"
	}
	return all
}

func show(s *discoveryv1.EndpointSlice) string {
	var words, numbers []string
	for _, e := range s.Endpoints {
		words = append(words, strings.TrimPrefix(fmt.Sprintf("%t:%s", *e.Conditions.Ready, e.Addresses[0]), "true:"))
	}
	for _, p := range s.Ports {
		numbers = append(numbers, fmt.Sprint(*p.Port))
	}
	return fmt.Sprintf("%s[%s]:%s", s.Name, strings.ReplaceAll(strings.Join(words, " "), "false:", "!"), strings.Join(numbers, ","))
}

func (p plan) String() string {
	var words []string
	for _, part := range []struct {
		verb string
		list []*discoveryv1.EndpointSlice
	}{{"create", p.Create}, {"update", p.Update}, {"delete", p.Delete}} {
		for _, s := range part.list {
			words = append(words, part.verb+" "+show(s))
		}
	}
	if p.Invalid+p.Beyond > 0 {
		words = append(words, fmt.Sprintf("%d invalid, %d beyond", p.Invalid, p.Beyond))
	}
	return strings.Join(words, ", ")
}

func TestDecide(t *testing.T) {
	withSelector := service(func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web"} })
	one := func() *corev1.Endpoints { return byHand("10.0.0.1:80") }
	cases := []struct {
		name    string
		e       *corev1.Endpoints
		service *corev1.Service
		have    []*discoveryv1.EndpointSlice
		want    string
	}{
		{"Endpoints of a Service without selector are mirrored", one(), service(), nil, "create [10.0.0.1]:80"},
		{"addresses keep their readiness", byHand("10.0.0.1 !10.0.0.2:80"), service(), nil, "create [10.0.0.1 !10.0.0.2]:80"},
		{"each family has a slice", byHand("10.0.0.1 fd00::1:80"), service(), nil, "create [10.0.0.1]:80, create [fd00::1]:80"},
		{"each subset has a slice", byHand("10.0.0.1:80", "10.0.0.2:90"), service(), nil, "create [10.0.0.1]:80, create [10.0.0.2]:90"},
		{"subsets with the same addresses share one", byHand("10.0.0.1:80", "10.0.0.1:90"), service(), nil, "create [10.0.0.1]:80,90"},
		{"no addresses, no slices", byHand(), service(), nil, ""},
		{"an old spelling is corrected, what is no address is left out", byHand("10.0.0.01 localhost:80"), service(), nil, "create [10.0.0.1]:80, 1 invalid, 0 beyond"},

		{"without a Service there is nothing to mirror", one(), nil, made(one()), "delete a[10.0.0.1]:80"},
		{"nor for one with a selector", one(), withSelector, made(one()), "delete a[10.0.0.1]:80"},
		{"nor without Endpoints", nil, service(), made(one()), "delete a[10.0.0.1]:80"},
		{"nor against the user's wish", edited(one(), func(e *corev1.Endpoints) {
			e.Labels = map[string]string{"endpointslice.kubernetes.io/skip-mirror": "true"}
		}), service(), made(one()), "delete a[10.0.0.1]:80"},
		{"that wish must be plain", edited(one(), func(e *corev1.Endpoints) {
			e.Labels = map[string]string{"endpointslice.kubernetes.io/skip-mirror": "no"}
		}), service(), nil, "create [10.0.0.1]:80"},
		{"nor for a lock of leader election", edited(one(), func(e *corev1.Endpoints) {
			e.Annotations = map[string]string{"control-plane.alpha.kubernetes.io/leader": "{}"}
		}), service(), made(one()), "delete a[10.0.0.1]:80"},
		{"Endpoints on their way out get no new slices", edited(one(), func(e *corev1.Endpoints) { e.DeletionTimestamp = new(metav1.Now()) }), service(), nil, ""},

		{"equal slices stay", one(), service(), made(one()), ""},
		{"ports in another order are equal", byHand("10.0.0.1:80,90"), service(), reordered(made(byHand("10.0.0.1:80,90"))), ""},
		{"a changed address is updated in place", byHand("10.0.0.2:80"), service(), made(one()), "update a[10.0.0.2]:80"},
		{"a changed port takes over the slice", byHand("10.0.0.1:81"), service(), made(one()), "update a[10.0.0.1]:81"},
		{"slices of another family cannot be taken over", byHand("fd00::1:80"), service(), made(one()), "create [fd00::1]:80, delete a[10.0.0.1]:80"},
		{"the slice of the same ports is preferred", byHand("10.0.0.1:90"), service(), made(byHand("10.0.0.1:80", "10.0.0.1 10.0.0.2:90")), "update b[10.0.0.1]:90, delete a[10.0.0.1]:80"},
		{"a second slice of the same ports goes", one(), service(), append(made(one()), renamed(made(one())[0], "z")), "delete z[10.0.0.1]:80"},
		{"no addresses left, all slices go", byHand(), service(), made(byHand("10.0.0.1 fd00::1:80")), "delete a[10.0.0.1]:80, delete b[fd00::1]:80"},
		{"Endpoints made anew own their slices anew", edited(one(), func(e *corev1.Endpoints) { e.UID = "new" }), service(), made(one()), "update a[10.0.0.1]:80"},
		{"a changed label is mirrored", edited(one(), func(e *corev1.Endpoints) { e.Labels = map[string]string{"tier": "front"} }), service(), made(one()), "update a[10.0.0.1]:80"},
		{"a changed annotation is mirrored", edited(one(), func(e *corev1.Endpoints) { e.Annotations = map[string]string{"by": "me"} }), service(), made(one()), "update a[10.0.0.1]:80"},
		{"bookkeeping of others is not", edited(one(), func(e *corev1.Endpoints) {
			e.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}", "endpoints.kubernetes.io/last-change-trigger-time": "now"}
		}), service(), made(one()), ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(c.e, c.service, c.have).String(); got != c.want {
				t.Errorf("\n got: %s\nwant: %s", got, c.want)
			}
		})
	}
}

func reordered(all []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	slices.Reverse(all[0].Ports)
	return all
}

func renamed(s *discoveryv1.EndpointSlice, name string) *discoveryv1.EndpointSlice {
	s = s.DeepCopy()
	s.Name = name
	return s
}

func TestSliceIsMarkedAndOwned(t *testing.T) {
	e := byHand("10.0.0.1:80")
	e.Labels = map[string]string{"tier": "front", "endpointslice.kubernetes.io/managed-by": "me"}
	e.Subsets[0].Addresses[0] = corev1.EndpointAddress{IP: "10.0.0.1", Hostname: "h", NodeName: new("n"), TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"}}
	e.Subsets[0].Ports[0].AppProtocol = new("http")
	got := decide(e, service(), nil).Create[0]
	want := map[string]string{"tier": "front", "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"}
	if fmt.Sprint(got.Labels) != fmt.Sprint(want) {
		t.Errorf("labels %v", got.Labels)
	}
	if ref := metav1.GetControllerOf(got); ref == nil || ref.Kind != "Endpoints" || ref.UID != "e" {
		t.Errorf("owner %v", ref)
	}
	if got.GenerateName != "web-" || got.AddressType != discoveryv1.AddressTypeIPv4 || *got.Ports[0].AppProtocol != "http" {
		t.Errorf("slice %+v", got)
	}
	if x := got.Endpoints[0]; *x.Hostname != "h" || *x.NodeName != "n" || x.TargetRef.Name != "p" {
		t.Errorf("endpoint %+v", x)
	}
}

func TestAThousandAddressesOfASubsetAreMirroredReadyOnesFirst(t *testing.T) {
	var ready, unready []string
	for i := range 700 {
		ready = append(ready, fmt.Sprintf("10.0.%d.%d", i/200, i%200))
		unready = append(unready, fmt.Sprintf("!fd00::%x", i+1))
	}
	p := decide(byHand(strings.Join(append(unready, ready...), " ")+":80"), service(), nil)
	if p.Beyond != 400 || len(p.Create) != 2 || len(p.Create[0].Endpoints) != 700 || len(p.Create[1].Endpoints) != 300 {
		t.Errorf("%d beyond, %d slices", p.Beyond, len(p.Create))
	}
}

// Whatever was mirrored before, one step makes the slices say what the
// Endpoints say now, and the next does nothing.
func TestOneStepIsEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) *corev1.Endpoints {
			var subsets []string
			for range rapid.IntRange(0, 4).Draw(t, name) {
				ips := rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.1", "!10.0.0.2", "10.0.0.3", "fd00::1", "!fd00::2"}), 1, 4).Draw(t, "ips")
				ports := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"80", "81", "90"}), 1, 3, rapid.ID).Draw(t, "ports")
				subsets = append(subsets, strings.Join(ips, " ")+":"+strings.Join(ports, ","))
			}
			return byHand(subsets...)
		}
		have := made(draw("before"))
		now := draw("now")
		p := decide(now, service(), have)
		for _, s := range p.Create {
			s.Name = "new"
		}
		after := append(slices.Clone(p.Create), p.Update...)
		for _, s := range have {
			isChanged := func(other *discoveryv1.EndpointSlice) bool { return other.Name == s.Name }
			if !slices.ContainsFunc(p.Update, isChanged) && !slices.ContainsFunc(p.Delete, isChanged) {
				after = append(after, s)
			}
		}
		say := func(list []*discoveryv1.EndpointSlice) string {
			var all []string
			for _, s := range list {
				all = append(all, strings.TrimPrefix(show(s), s.Name))
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		if want := say(made(now)); say(after) != want {
			t.Fatalf("slices are %s, want %s, by %s", say(after), want, p)
		}
		if again := decide(now, service(), after).String(); again != "" {
			t.Fatalf("the next step does %s", again)
		}
	})
}
