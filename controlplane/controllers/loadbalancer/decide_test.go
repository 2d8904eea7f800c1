package loadbalancer

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"weft.dev/weft/controlplane/api"
)

// service is described as "name key=value ...", keys being:
//
//	age      seconds since its creation, default 0
//	type     default LoadBalancer
//	class    loadBalancerClass
//	families default 4; 46 is dual stack, 4 first
//	policy   ipFamilyPolicy
//	ask      the annotation; askField is spec.loadBalancerIP
//	has      addresses in the status
//	held     pools in the annotation, with the finalizer
//	external spec.externalIPs
//	app      label
//	deleting any value
func service(description string) *corev1.Service {
	fields := strings.Fields(description)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: fields[0], UID: types.UID(fields[0]),
			CreationTimestamp: metav1.Unix(1000, 0), Annotations: map[string]string{}, Labels: map[string]string{},
		},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}},
	}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		list := strings.Split(value, ",")
		switch key {
		case "age":
			age, _ := time.ParseDuration(value + "s")
			svc.CreationTimestamp = metav1.NewTime(time.Unix(1000, 0).Add(-age))
		case "type":
			svc.Spec.Type = corev1.ServiceType(value)
		case "class":
			svc.Spec.LoadBalancerClass = &value
		case "families":
			svc.Spec.IPFamilies = nil
			for _, f := range value {
				svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, corev1.IPFamily("IPv"+string(f)))
			}
		case "policy":
			svc.Spec.IPFamilyPolicy = (*corev1.IPFamilyPolicy)(&value)
		case "ask":
			svc.Annotations[api.LoadBalancerIPsAnnotation] = value
		case "askField":
			svc.Spec.LoadBalancerIP = value
		case "has":
			for _, ip := range list {
				svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
			}
		case "held":
			svc.Annotations[api.LoadBalancerPoolAnnotation] = value
			svc.Finalizers = []string{Finalizer}
		case "external":
			svc.Spec.ExternalIPs = list
		case "app":
			svc.Labels["app"] = value
		case "deleting":
			svc.DeletionTimestamp = new(metav1.Now())
		default:
			panic(field)
		}
	}
	return svc
}

// poolOf is described as "name addresses [namespace=...] [app=...]".
func poolOf(description string) *api.LoadBalancerPool {
	fields := strings.Fields(description)
	object := &api.LoadBalancerPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "weft.dev/v1alpha1", Kind: "LoadBalancerPool"},
		ObjectMeta: metav1.ObjectMeta{Name: fields[0], Generation: 1},
		Spec:       api.LoadBalancerPoolSpec{Addresses: strings.Split(fields[1], ",")},
	}
	for _, field := range fields[2:] {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "namespace":
			object.Spec.Namespaces = []string{value}
		case "app":
			object.Spec.ServiceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": value}}
		default:
			panic(field)
		}
	}
	return object
}

func pools(t interface{ Fatal(...any) }, descriptions string) []*pool {
	var list []*pool
	for d := range strings.SplitSeq(descriptions, "; ") {
		if d == "" {
			continue
		}
		p, err := newPool(poolOf(d))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

func (o outcome) String() string {
	var words []string
	for _, a := range o.Addresses {
		words = append(words, a.String())
	}
	text := fmt.Sprintf("%s: %s", o.Service.Name, strings.Join(words, ","))
	if len(o.Pools) > 0 {
		text += " of " + strings.Join(o.Pools, ",")
	}
	if o.Release {
		text += "released"
	}
	if o.Problem != "" {
		text += " " + o.Reason
	}
	return text
}

func TestDecide(t *testing.T) {
	const v4 = "p 192.0.2.1-192.0.2.3"
	const dual = "p 192.0.2.1-192.0.2.3,2001:db8::1-2001:db8::3"
	cases := []struct {
		name, pools string
		services    string
		want        string
	}{
		{"the first Service gets the first address", v4, "a", "a: 192.0.2.1 of p"},
		{"older Services come first", v4, "a; b age=9", "b: 192.0.2.1 of p; a: 192.0.2.2 of p"},
		{"what a Service has stays its own", v4, "a; b has=192.0.2.1", "a: 192.0.2.2 of p; b: 192.0.2.1 of p"},
		{"a gap is filled", v4, "a has=192.0.2.1; b has=192.0.2.3; c", "a: 192.0.2.1 of p; b: 192.0.2.3 of p; c: 192.0.2.2 of p"},
		{"of two Services with one address the older keeps it", v4, "a has=192.0.2.1; b age=9 has=192.0.2.1", "b: 192.0.2.1 of p; a: 192.0.2.2 of p"},
		{"an external address is not given out", v4, "a type=ClusterIP external=192.0.2.1; b", "b: 192.0.2.2 of p"},
		{"nor is one that a Service of another class has", v4, "a class=example.com/x has=192.0.2.1; b", "b: 192.0.2.2 of p"},
		{"Weft's own class is like none", v4, "a class=weft.dev/loadbalancer", "a: 192.0.2.1 of p"},
		{"the last one is told that none is left", "p 192.0.2.1", "a age=9; b", "a: 192.0.2.1 of p; b:  LoadBalancerPoolExhausted"},
		{"without a pool there is nothing", "", "a", "a:  NoLoadBalancerPool"},
		{"without a pool that the Service may use, too", "p 192.0.2.1 namespace=other", "a", "a:  NoLoadBalancerPool"},
		{"pools are used in the order of their names", "p 192.0.2.1; q 198.51.100.1", "a age=9; b", "a: 192.0.2.1 of p; b: 198.51.100.1 of q"},
		{"a selector chooses by labels", "p 192.0.2.1 app=web; q 198.51.100.1", "a; b app=web", "a: 198.51.100.1 of q; b: 192.0.2.1 of p"},
		{"an address outside of every pool is kept", v4, "a has=203.0.113.9 held=old", "a: 203.0.113.9"},

		{"a dual-stack Service gets one of each family in its order", dual, "a families=64", "a: 2001:db8::1,192.0.2.1 of p"},
		{"families may come from different pools", "p 192.0.2.1; q 2001:db8::1", "a families=46", "a: 192.0.2.1,2001:db8::1 of p,q"},
		{"one family will do where two are preferred", v4, "a families=46 policy=PreferDualStack", "a: 192.0.2.1 of p"},
		{"but if both are required, there is no half of it", v4 + "; q 2001:db8::1", "a age=9 families=6; b families=46 policy=RequireDualStack; c",
			"a: 2001:db8::1 of q; b:  LoadBalancerPoolExhausted; c: 192.0.2.2 of p"},
		{"the address of a family that was given up goes", dual, "a has=192.0.2.1,2001:db8::1", "a: 192.0.2.1 of p"},
		{"the address of a family that came is added", dual, "a families=46 has=192.0.2.2", "a: 192.0.2.2,2001:db8::1 of p"},

		{"a requested address is given", v4, "a ask=192.0.2.3", "a: 192.0.2.3 of p"},
		{"spec.loadBalancerIP is honoured", v4, "a askField=192.0.2.2", "a: 192.0.2.2 of p"},
		{"the annotation goes before it, for both families", dual, "a families=46 askField=192.0.2.2 ask=192.0.2.3,2001:db8::2", "a: 192.0.2.3,2001:db8::2 of p"},
		{"not one of another Service", v4, "a has=192.0.2.3; b ask=192.0.2.3", "a: 192.0.2.3 of p; b:  LoadBalancerAddressInUse"},
		{"not one outside of the pools", v4, "a ask=203.0.113.1", "a:  LoadBalancerAddressNotInPool"},
		{"until a new request can be met, the Service keeps what it has", v4, "a has=192.0.2.1; b has=192.0.2.2 ask=192.0.2.1", "a: 192.0.2.1 of p; b: 192.0.2.2 of p LoadBalancerAddressInUse"},
		{"when it can, the address changes", v4, "a has=192.0.2.1 ask=192.0.2.2", "a: 192.0.2.2 of p"},
		{"a request that is no address is said so", v4, "a ask=here", "a:  InvalidLoadBalancerAddress"},
		{"so is one of a family that the Service does not have", dual, "a ask=2001:db8::1", "a:  InvalidLoadBalancerAddress"},
		{"so are two of one family", v4, "a ask=192.0.2.1,192.0.2.2", "a:  InvalidLoadBalancerAddress"},

		{"a Service that changed its type is released", v4, "a type=ClusterIP held=p", "a: released"},
		{"so is one that is being deleted", v4, "a held=p has=192.0.2.1 deleting=1", "a: released"},
		{"until then its address is not free", v4, "a held=p has=192.0.2.1 deleting=1; b", "a: released; b: 192.0.2.2 of p"},
		{"others are left alone", v4, "a type=NodePort; b class=example.com/x", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var services []*corev1.Service
			for d := range strings.SplitSeq(c.services, "; ") {
				services = append(services, service(d))
			}
			for range 2 { // in any order
				var words []string
				for _, o := range decide(pools(t, c.pools), services) {
					words = append(words, o.String())
				}
				if got := strings.Join(words, "; "); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
				slices.Reverse(services)
			}
		})
	}
}

func TestNoAddressIsEverGivenToTwoServices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := pools(t, "p 192.0.2.0/29; q 192.0.2.6-192.0.2.12,2001:db8::/126")
		var services []*corev1.Service
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			if len(services) > 0 && rapid.IntRange(0, 3).Draw(t, "leaves") == 0 {
				services = slices.Delete(services, 0, 1)
			}
			ask := rapid.SampledFrom([]string{"", "", " ask=192.0.2.3", " ask=192.0.2.7", " families=46", " families=6"}).Draw(t, "asks")
			services = append(services, service(fmt.Sprintf("s%d age=%d%s", i, rapid.IntRange(0, 9).Draw(t, "age"), ask)))
			for _, p := range all {
				clear(p.next)
			}
			for _, o := range decide(all, services) {
				o.Service.Status.LoadBalancer.Ingress = nil
				for _, a := range o.Addresses {
					o.Service.Status.LoadBalancer.Ingress = append(o.Service.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
				}
			}
			seen := map[netip.Addr]string{}
			for _, svc := range services {
				for _, addr := range current(svc) {
					if other := seen[addr]; other != "" {
						t.Fatalf("%s and %s both have %s", other, svc.Name, addr)
					}
					seen[addr] = svc.Name
				}
			}
		}
	})
}

func TestSpans(t *testing.T) {
	cases := []struct {
		text string
		want string
		size int64
	}{
		{"192.0.2.0/24", "192.0.2.0-192.0.2.255", 256},
		{"192.0.2.77/30", "192.0.2.76-192.0.2.79", 4},
		{"192.0.2.9", "192.0.2.9-192.0.2.9", 1},
		{"192.0.2.250-192.0.3.5", "192.0.2.250-192.0.3.5", 12},
		{"2001:db8::/126", "2001:db8::-2001:db8::3", 4},
		{"2001:db8::ffff:ffff:ffff:ffff-2001:db8:0:1::1", "2001:db8::ffff:ffff:ffff:ffff-2001:db8:0:1::1", 3},
		{"2001:db8::/64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", math.MaxInt64},
		{"2001:db8::/48", "2001:db8::-2001:db8:0:ffff:ffff:ffff:ffff:ffff", math.MaxInt64},
	}
	for _, c := range cases {
		s, err := parseSpan(c.text)
		if got := fmt.Sprintf("%s-%s", s.First, s.Last); err != nil || got != c.want || s.size() != c.size {
			t.Errorf("%s is %s with %d addresses, %v; want %s with %d", c.text, got, s.size(), err, c.want, c.size)
		}
	}
}

func TestMistakesInAPoolNameTheField(t *testing.T) {
	for addresses, want := range map[string]string{
		"here":                        `spec.addresses[0]: "here" is neither a prefix nor a range nor an address`,
		"192.0.2.1,192.0.2.9-":        `spec.addresses[1]: `,
		"192.0.2.9-192.0.2.1":         `spec.addresses[0]: "192.0.2.9-192.0.2.1" ends before it begins`,
		"192.0.2.1-2001:db8::1":       `spec.addresses[0]: "192.0.2.1-2001:db8::1" has addresses of two families`,
		"127.0.0.0/24":                `spec.addresses[0]: "127.0.0.0/24": 127.0.0.0 is no address that clients can be routed to`,
		"fe80::1":                     `spec.addresses[0]: "fe80::1": fe80::1 is no address`,
		"192.0.2.0/28,192.0.2.8":      `spec.addresses[1]: "192.0.2.8" overlaps with another`,
		"192.0.2.8,192.0.2.0/28":      `spec.addresses[1]: "192.0.2.0/28" overlaps with another`,
		"::ffff:192.0.2.1":            `spec.addresses[0]: "::ffff:192.0.2.1"`,
		"224.0.0.1-224.0.0.3,1.1.1.1": `spec.addresses[0]: "224.0.0.1-224.0.0.3": 224.0.0.1 is no address`,
	} {
		if _, err := newPool(poolOf("p " + addresses)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", addresses, err, want)
		}
	}
}
