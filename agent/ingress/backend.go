package ingress

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/agent/l7"
)

// responseTimeout is the wait for the headers of an HTTP/1.1 response. gRPC
// streams may send theirs much later, so h2c has no limit.
const responseTimeout = 60 * time.Second

// cluster returns the name of the cluster for a backend, or "" if there can
// be none, which is a problem of ingress.
func (t *translation) cluster(ingress *networkingv1.Ingress, field string, backend networkingv1.IngressBackend) string {
	if backend.Service == nil {
		t.problem(ingress, ReasonUnsupportedBackend, "%s.resource: Weft serves only Services", field)
		return ""
	}
	ref := backend.Service
	name := types.NamespacedName{Namespace: ingress.Namespace, Name: ref.Name}
	t.out.Services[name] = true
	service := t.in.Service(name)
	if service == nil {
		t.problem(ingress, ReasonServiceNotFound, "%s.service.name: there is no Service %s", field, name)
		return ""
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		t.problem(ingress, ReasonUnsupportedBackend,
			"%s.service.name: Service %s is an ExternalName; Weft serves only pods, because the name could lead to the node itself", field, name)
		return ""
	}
	port := findPort(service, ref.Port)
	if port == nil {
		t.problem(ingress, ReasonPortNotFound, "%s.service.port: Service %s has no TCP port %s",
			field, name, cmp.Or(ref.Port.Name, strconv.Itoa(int(ref.Port.Number))))
		return ""
	}
	key := fmt.Sprintf("%s:%d", name, port.Port)
	if _, ok := t.clusters[key]; !ok {
		scheme := portScheme(port)
		c := l7.Cluster{Name: key, Scheme: scheme, Endpoints: endpoints(service, port.Name, t.in.Slices(name))}
		if scheme != l7.H2C {
			c.ResponseTimeout = responseTimeout
		}
		t.clusters[key] = c
	}
	return key
}

func findPort(service *corev1.Service, want networkingv1.ServiceBackendPort) *corev1.ServicePort {
	for i := range service.Spec.Ports {
		port := &service.Spec.Ports[i]
		if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
			continue
		}
		if want.Name != "" && port.Name == want.Name || want.Name == "" && port.Port == want.Number {
			return port
		}
	}
	return nil
}

// portScheme reads appProtocol (KEP-3726). Endpoints that speak TLS are not
// verified: Ingress has no field to say by which name and roots.
func portScheme(port *corev1.ServicePort) l7.Scheme {
	if port.AppProtocol == nil {
		return l7.PlainHTTP
	}
	switch *port.AppProtocol {
	case "kubernetes.io/h2c", "grpc":
		return l7.H2C
	case "https", "kubernetes.io/wss":
		return l7.TLS
	}
	return l7.PlainHTTP
}

// endpoints returns the addresses of the ready endpoints for a port of the
// Service's first address family that has any. If none is ready, those that
// still serve while they terminate are used (KEP-1669).
func endpoints(service *corev1.Service, portName string, endpointSlices []*discoveryv1.EndpointSlice) []string {
	families := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	if len(service.Spec.IPFamilies) > 0 && service.Spec.IPFamilies[0] == corev1.IPv6Protocol {
		slices.Reverse(families)
	}
	for _, family := range families {
		var ready, terminating []string
		for _, slice := range endpointSlices {
			if slice.AddressType != family {
				continue
			}
			port := slicePort(slice, portName)
			if port == 0 {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				address := addrPort(endpoint, port)
				conditions := endpoint.Conditions
				switch {
				case isTrue(conditions.Ready, true):
					ready = append(ready, address)
				case isTrue(conditions.Serving, false) && isTrue(conditions.Terminating, false):
					terminating = append(terminating, address)
				}
			}
		}
		chosen := ready
		if len(chosen) == 0 {
			chosen = terminating
		}
		if len(chosen) > 0 {
			slices.Sort(chosen)
			return slices.Compact(chosen)
		}
	}
	return nil
}

// slicePort returns the number of the slice's port with the Service port's
// name, or 0.
func slicePort(slice *discoveryv1.EndpointSlice, name string) uint16 {
	for _, port := range slice.Ports {
		isTCP := port.Protocol == nil || *port.Protocol == corev1.ProtocolTCP
		if isTCP && port.Port != nil && (port.Name == nil && name == "" || port.Name != nil && *port.Name == name) {
			return uint16(*port.Port)
		}
	}
	return 0
}

// addrPort returns the endpoint's first address, which the API says is the one
// to use.
func addrPort(endpoint discoveryv1.Endpoint, port uint16) string {
	return net.JoinHostPort(endpoint.Addresses[0], strconv.Itoa(int(port)))
}

func isTrue(condition *bool, unset bool) bool {
	if condition == nil {
		return unset
	}
	return *condition
}
