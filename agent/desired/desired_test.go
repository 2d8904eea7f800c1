package desired

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestConfiguredNodeAddressesWinOverTheNodeObject(t *testing.T) {
	in := Inputs{
		Settings: Settings{NodeName: "a", NodeAddresses: []netip.Addr{netip.MustParseAddr("172.30.0.9")}},
		Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "a"},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.1"}}},
		}},
	}
	if got := Compute(in).Node.Addresses; fmt.Sprint(got) != "[172.30.0.9]" {
		t.Errorf("node addresses %v", got)
	}
}

func TestInputsAreNotModified(t *testing.T) {
	in := manyServices(3, 4)
	before := fmt.Sprintf("%v%v", in.Services, in.EndpointSlices)
	Compute(in)
	if after := fmt.Sprintf("%v%v", in.Services, in.EndpointSlices); after != before {
		t.Error("Compute changed its inputs")
	}
}

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("%d Services of 10 endpoints", n), func(b *testing.B) {
			in := manyServices(n, 10)
			b.ReportAllocs()
			for b.Loop() {
				Compute(in)
			}
		})
	}
}

func manyServices(services, endpoints int) Inputs {
	in := Inputs{Settings: Settings{NodeName: "node-0", NodeAddresses: []netip.Addr{netip.MustParseAddr("172.30.0.1")}}}
	port, name := int32(8080), "http"
	for i := range services {
		meta := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("service-%d", i)}
		in.Services = append(in.Services, &corev1.Service{
			ObjectMeta: meta,
			Spec: corev1.ServiceSpec{
				ClusterIP: fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255),
				Ports:     []corev1.ServicePort{{Name: name, Port: 80}},
			},
		})
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: meta.Name, Labels: map[string]string{discoveryv1.LabelServiceName: meta.Name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		}
		for j := range endpoints {
			node := fmt.Sprintf("node-%d", j)
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+j, i>>8&255, i&255)}, NodeName: &node,
			})
		}
		in.EndpointSlices = append(in.EndpointSlices, slice)
	}
	return in
}
