package traces

//lint:file-ignore SA1019 Endpoints are compared, too

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"

	weftendpoints "weft.dev/weft/controlplane/controllers/endpoints"
	weftendpointslice "weft.dev/weft/controlplane/controllers/endpointslice"
	weftmirroring "weft.dev/weft/controlplane/controllers/endpointslicemirroring"
	"weft.dev/weft/controlplane/reconcile"
)

// Endpoints, EndpointSlices and the mirroring of one to the other are played
// together, since each reads what another writes. There are two Services: "web"
// is edited, "twin" selects the same pods and is headless.
func TestEndpointsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{
				must[*weftendpoints.Controller](t)(weftendpoints.New(c.Env("endpoint-controller"))),
				must[*weftendpointslice.Controller](t)(weftendpointslice.New(c.Env("endpointslice-controller"))),
				must[*weftmirroring.Controller](t)(weftmirroring.New(c.Env("endpointslicemirroring-controller"))),
			}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			core, slices := c.Informers.Core().V1(), c.Informers.Discovery().V1().EndpointSlices()
			e := endpoint.NewEndpointController(t.Context(), core.Pods(), core.Services(), core.Endpoints(), c.Client, 0)
			s := endpointslice.NewController(t.Context(), core.Pods(), core.Services(), core.Nodes(), slices, 100, c.Client, 0)
			m := endpointslicemirroring.NewController(t.Context(), core.Endpoints(), slices, core.Services(), 1000, c.Client, 0)
			return []reconcile.Runner{
				upstream{"endpoint", func(ctx context.Context) { e.Run(ctx, workers) }},
				upstream{"endpointslice", func(ctx context.Context) { s.Run(ctx, workers) }},
				upstream{"endpointslicemirroring", func(ctx context.Context) { m.Run(ctx, workers) }},
			}
		},
		create: func(w *world, n int) {
			for i := range 3 {
				w.addZonedNode(i)
			}
			for i := range n % 5 {
				w.addPod(i)
			}
			for _, s := range []*corev1.Service{newService("web", n), newService("twin", 1)} {
				must[*corev1.Service](w.t)(w.Client.CoreV1().Services(namespace).Create(w.t.Context(), s, metav1.CreateOptions{}))
			}
		},
		actions:  append(endpointActions, without(podActions, "pod fails", "pod ends well", "orphan pod", "deletion cost")...),
		nudge:    lookAtServices,
		describe: func(w *world) string { return w.describeEndpoints() + w.describeSlices() + w.describePods() },
	})
}

var families = [][]corev1.IPFamily{{corev1.IPv4Protocol}, {corev1.IPv6Protocol}, {corev1.IPv4Protocol, corev1.IPv6Protocol}}

var servicePorts = [][]corev1.ServicePort{
	{{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}},
	{{Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP}},
	{
		{Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP, AppProtocol: new("http")},
		{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(53), Protocol: corev1.ProtocolUDP},
	},
	nil,
}

var selectors = []map[string]string{{"app": "web"}, {"app": "web"}, {"app": "stray"}, {"app": "web", "tier": "1"}, nil}

// newService is the nth of several Services.
func newService(name string, n int) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeClusterIP,
			Selector:   map[string]string{"app": "web"},
			ClusterIP:  []string{"10.96.0.1", corev1.ClusterIPNone}[n%2],
			IPFamilies: families[n/2%len(families)],
			Ports:      servicePorts[n/6%3],
		},
	}
	s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	return s
}

// editService edits "web".
func editService(edit func(s *corev1.Service, n int)) func(*world, int) {
	return func(w *world, n int) { w.editService("web", func(s *corev1.Service) { edit(s, n) }) }
}

func (w *world) editService(name string, edit func(s *corev1.Service)) {
	api := w.Client.CoreV1().Services(namespace)
	s := must[*corev1.Service](w.t)(api.Get(w.t.Context(), name, metav1.GetOptions{}))
	edit(s)
	must[*corev1.Service](w.t)(api.Update(w.t.Context(), s, metav1.UpdateOptions{}))
}

// lookAtServices makes upstream see what alone does not make it look: that
// somebody has edited Endpoints, or that a pod has ended which was not ready.
func lookAtServices(w *world, n int) {
	for _, name := range []string{"web", "twin"} {
		w.editService(name, func(s *corev1.Service) { s.Annotations = map[string]string{"look": fmt.Sprint(n)} })
	}
}

// addPod makes a pod with an address and named ports.
func (w *world) addPod(n int) {
	w.addresses++
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprint("pod-", w.addresses), Namespace: namespace,
			Labels:      map[string]string{"app": "web", "tier": fmt.Sprint(n % 2)},
			Annotations: map[string]string{"number": fmt.Sprint(w.addresses)}, // tells pods apart
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprint("node-", n%4),
			Containers: []corev1.Container{{Name: "c", Image: images[n%len(images)], Ports: []corev1.ContainerPort{
				{Name: []string{"http", "web"}[n/4%2], ContainerPort: int32(8080 + n%2), Protocol: corev1.ProtocolTCP},
			}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending, PodIPs: addressesOf(w.addresses)},
	}
	pod.Status.PodIP = pod.Status.PodIPs[0].IP
	if n%3 == 0 {
		pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, []string{"web", "twin"}[n%2]
	}
	must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods(namespace).Create(w.t.Context(), pod, metav1.CreateOptions{}))
}

func addressesOf(n int) []corev1.PodIP {
	return []corev1.PodIP{{IP: fmt.Sprint("10.0.0.", n)}, {IP: fmt.Sprintf("fd00::%x", n)}}
}

func (w *world) addZonedNode(n int) {
	_, _ = w.Client.CoreV1().Nodes().Create(w.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprint("zone-", n%2)}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}, metav1.CreateOptions{})
}

// slices returns all EndpointSlices in an order that does not depend on their names.
func (w *world) slices() []*discoveryv1.EndpointSlice {
	list := must[*discoveryv1.EndpointSliceList](w.t)(w.Client.DiscoveryV1().EndpointSlices(namespace).List(w.t.Context(), metav1.ListOptions{}))
	return slices.SortedFunc(slices.Values(pointers(list.Items)), func(a, b *discoveryv1.EndpointSlice) int {
		return strings.Compare(describeSlice(a), describeSlice(b))
	})
}

func editSlice(edit func(s *discoveryv1.EndpointSlice, n int)) func(*world, int) {
	return func(w *world, n int) {
		if s := pick(w.slices(), n); s != nil {
			edit(s, n)
			must[*discoveryv1.EndpointSlice](w.t)(w.Client.DiscoveryV1().EndpointSlices(namespace).Update(w.t.Context(), s, metav1.UpdateOptions{}))
		}
	}
}

// userSubsets are what users write into Endpoints.
var userSubsets = [][]corev1.EndpointSubset{
	nil,
	{{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}}, Ports: []corev1.EndpointPort{{Name: "a", Port: 1, Protocol: corev1.ProtocolTCP}}}},
	{
		{
			Addresses:         []corev1.EndpointAddress{{IP: "192.0.2.1", Hostname: "one"}, {IP: "2001:db8::1"}},
			NotReadyAddresses: []corev1.EndpointAddress{{IP: "192.0.2.2", NodeName: new("node-1")}},
			Ports:             []corev1.EndpointPort{{Name: "a", Port: 1, Protocol: corev1.ProtocolTCP}, {Name: "b", Port: 2, Protocol: corev1.ProtocolUDP}},
		},
		{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.3"}}, Ports: []corev1.EndpointPort{{Port: 3, Protocol: corev1.ProtocolTCP, AppProtocol: new("http")}}},
	},
	{{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.4"}}}},
}

// writeEndpoints has a user write the Endpoints of "web".
func writeEndpoints(edit func(e *corev1.Endpoints, n int)) func(*world, int) {
	return func(w *world, n int) {
		api := w.Client.CoreV1().Endpoints(namespace)
		e, err := api.Get(w.t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			e = &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace}}
			edit(e, n)
			must[*corev1.Endpoints](w.t)(api.Create(w.t.Context(), e, metav1.CreateOptions{}))
		} else {
			edit(e, n)
			must[*corev1.Endpoints](w.t)(api.Update(w.t.Context(), e, metav1.UpdateOptions{}))
		}
		w.Pass(100 * time.Millisecond)
		w.look()
	}
}

// endPod ends a pod, which upstream misses if it was not ready.
func endPod(phase corev1.PodPhase) func(*world, int) {
	return onPod(func(w *world, pod *corev1.Pod) {
		w.finish(pod, phase)
		w.Pass(100 * time.Millisecond)
		w.look()
	})
}

var endpointActions = []action{
	{"add pod", func(w *world, n int) { w.addPod(n) }},
	{"add pod", func(w *world, n int) { w.addPod(n) }},
	{"add pods", func(w *world, n int) {
		for i := range 5 {
			w.addPod(n + i)
		}
	}},
	{"pod fails", endPod(corev1.PodFailed)},
	{"pod ends well", endPod(corev1.PodSucceeded)},
	{"pod address", onPod(func(w *world, pod *corev1.Pod) {
		w.addresses++
		pod.Status.PodIPs = addressesOf(w.addresses)
		pod.Status.PodIP = pod.Status.PodIPs[0].IP
		_, _ = w.Client.CoreV1().Pods(namespace).UpdateStatus(w.t.Context(), pod, metav1.UpdateOptions{})
	})},
	{"selector", editService(func(s *corev1.Service, n int) { s.Spec.Selector = selectors[n%len(selectors)] })},
	{"ports", editService(func(s *corev1.Service, n int) { s.Spec.Ports = servicePorts[n%len(servicePorts)] })},
	{"publish not ready", editService(func(s *corev1.Service, _ int) { s.Spec.PublishNotReadyAddresses = !s.Spec.PublishNotReadyAddresses })},
	{"label service", editService(func(s *corev1.Service, n int) { s.Labels = map[string]string{"team": fmt.Sprint(n % 3)} })},
	{"families", editService(func(s *corev1.Service, n int) { s.Spec.IPFamilies = families[n%len(families)] })},
	{"external name", editService(func(s *corev1.Service, n int) {
		s.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeExternalName, corev1.ServiceTypeClusterIP}[n%2]
	})},
	{"traffic distribution", editService(func(s *corev1.Service, n int) {
		s.Spec.TrafficDistribution = []*string{nil, new(corev1.ServiceTrafficDistributionPreferSameZone), new(corev1.ServiceTrafficDistributionPreferSameNode)}[n%3]
	})},
	{"make anew", func(w *world, n int) {
		api := w.Client.CoreV1().Services(namespace)
		_ = api.Delete(w.t.Context(), "web", metav1.DeleteOptions{})
		w.Pass([]time.Duration{time.Second, 10 * time.Second}[n%2])
		w.collectGarbage()
		w.Pass(time.Second)
		must[*corev1.Service](w.t)(api.Create(w.t.Context(), newService("web", n/2), metav1.CreateOptions{}))
	}},
	{"delete a slice", func(w *world, n int) {
		if s := pick(w.slices(), n); s != nil {
			_ = w.Client.DiscoveryV1().EndpointSlices(namespace).Delete(w.t.Context(), s.Name, metav1.DeleteOptions{})
		}
	}},
	// Nobody takes a slice by its labels: upstream waits for ever to see again
	// what it wrote there, and does nothing more for that Service.
	{"empty a slice", editSlice(func(s *discoveryv1.EndpointSlice, _ int) { s.Endpoints = nil })},
	{"delete endpoints", func(w *world, _ int) {
		_ = w.Client.CoreV1().Endpoints(namespace).Delete(w.t.Context(), "web", metav1.DeleteOptions{})
	}},
	{"write endpoints", writeEndpoints(func(e *corev1.Endpoints, n int) { e.Subsets = userSubsets[n%len(userSubsets)] })},
	{"write endpoints", writeEndpoints(func(e *corev1.Endpoints, n int) { e.Subsets = userSubsets[n%len(userSubsets)] })},
	{"label endpoints", writeEndpoints(func(e *corev1.Endpoints, n int) {
		e.Labels = []map[string]string{nil, {discoveryv1.LabelSkipMirror: "true"}, {"mine": "1"}}[n%3]
	})},
	{"node joins", func(w *world, n int) { w.addZonedNode(n) }},
	{"node leaves", func(w *world, n int) {
		_ = w.Client.CoreV1().Nodes().Delete(w.t.Context(), nodeName(n), metav1.DeleteOptions{})
	}},
	{"node zone", editNode(func(node *corev1.Node, n int) {
		node.Labels = map[string]string{corev1.LabelTopologyZone: fmt.Sprint("zone-", n%3)}
	})},
}

func (w *world) describeEndpoints() string {
	var lines []string
	list := must[*corev1.EndpointsList](w.t)(w.Client.CoreV1().Endpoints(namespace).List(w.t.Context(), metav1.ListOptions{}))
	for _, e := range list.Items {
		lines = append(lines, fmt.Sprintf("Endpoints %s: labels %s annotations %s\n", e.Name, describeMap(e.Labels), describeMap(withoutTrigger(e.Annotations))))
		for _, subset := range e.Subsets {
			ports := describePorts(subset.Ports, func(p corev1.EndpointPort) string {
				return fmt.Sprintf("%s=%d/%s %s", p.Name, p.Port, p.Protocol, optionalText(p.AppProtocol))
			})
			describe := func(state string, addresses []corev1.EndpointAddress) {
				for _, a := range addresses {
					lines = append(lines, fmt.Sprintf("address of %s: %s %s, host %q on %s, ports %s, %s\n", e.Name, a.IP, state, a.Hostname, optionalText(a.NodeName), ports, describeTarget(a.TargetRef)))
				}
			}
			describe("ready", subset.Addresses)
			describe("not ready", subset.NotReadyAddresses)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// describeSlices lists what slices say, however it is spread over them.
func (w *world) describeSlices() string {
	var lines []string
	for _, s := range w.slices() {
		lines = append(lines, strings.SplitAfter(strings.TrimSuffix(describeSlice(s), "\n"), "\n")...)
	}
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\n") + "\n"
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

func describeSlice(s *discoveryv1.EndpointSlice) string {
	ports := describePorts(s.Ports, func(p discoveryv1.EndpointPort) string {
		return fmt.Sprintf("%s=%s/%s %s", optionalText(p.Name), optional(p.Port), *p.Protocol, optionalText(p.AppProtocol))
	})
	var owners []string
	for _, ref := range s.OwnerReferences {
		owners = append(owners, ref.Kind+" "+ref.Name)
	}
	of := fmt.Sprintf("%s slice of %s, ports %s", s.AddressType, s.Labels[discoveryv1.LabelServiceName], ports)
	lines := []string{fmt.Sprintf("%s: labels %s annotations %s owners %v\n", of, describeMap(s.Labels), describeMap(withoutTrigger(s.Annotations)), owners)}
	for _, e := range s.Endpoints {
		var hints []string
		if e.Hints != nil {
			for _, zone := range e.Hints.ForZones {
				hints = append(hints, zone.Name)
			}
			for _, node := range e.Hints.ForNodes {
				hints = append(hints, node.Name)
			}
		}
		lines = append(lines, fmt.Sprintf("%s: %v ready %s serving %s terminating %s, host %s on %s in %s, hints %v, %s, by %s\n", of, e.Addresses,
			claim(e.Conditions.Ready), claim(e.Conditions.Serving), claim(e.Conditions.Terminating), optionalText(e.Hostname), optionalText(e.NodeName),
			optionalText(e.Zone), hints, describeTarget(e.TargetRef), s.Labels[discoveryv1.LabelManagedBy]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func describePorts[T any](ports []T, describe func(T) string) string {
	var words []string
	for _, p := range ports {
		words = append(words, describe(p))
	}
	slices.Sort(words)
	return fmt.Sprint(words)
}

func describeTarget(ref *corev1.ObjectReference) string {
	if ref == nil {
		return "no target"
	}
	return ref.Kind + " " + ref.Name
}

// withoutTrigger leaves out when the change began that led to an object.
func withoutTrigger(annotations map[string]string) map[string]string {
	kept := maps.Clone(annotations)
	delete(kept, corev1.EndpointsLastChangeTriggerTime)
	return kept
}

func claim(b *bool) string {
	if b == nil {
		return "unknown"
	}
	return fmt.Sprint(*b)
}
