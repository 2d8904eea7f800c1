package main

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// addService makes a Service without a selector in front of one server, which
// may be in the cluster or not, and returns its address.
func (c *cluster) addService(ctx context.Context, name string, server netip.Addr) (netip.Addr, error) {
	var ports []corev1.ServicePort
	var endpointPorts []discoveryv1.EndpointPort
	for portName, protocol := range map[string]corev1.Protocol{"tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP} {
		number := int32(loadPort)
		ports = append(ports, corev1.ServicePort{Name: portName, Protocol: protocol, Port: number})
		endpointPorts = append(endpointPorts, discoveryv1.EndpointPort{Name: &portName, Protocol: &protocol, Port: &number})
	}
	service, err := c.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: ports},
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.Addr{}, err
	}
	yes := true
	_, err = c.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: name,
			discoveryv1.LabelManagedBy:   "bench",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{server.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes},
		}},
		Ports: endpointPorts,
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(service.Spec.ClusterIP)
}

// addIdleServices makes n Services that nobody uses. Each has a backend, since
// kube-proxy treats those without apart.
func addIdleServices(ctx context.Context, c *cluster, n int) error {
	for i := range n {
		backend := netip.AddrFrom4([4]byte{10, 238, byte(i >> 8), byte(i)})
		if _, err := c.addService(ctx, fmt.Sprintf("idle-%d", i), backend); err != nil {
			return err
		}
	}
	return nil
}
