package desired

import (
	"cmp"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// HealthCheck is a port on which an external load balancer asks whether this
// node has endpoints of a Service (Service.spec.healthCheckNodePort).
type HealthCheck struct {
	Service types.NamespacedName
	Port    uint16 // host byte order
	// LocalEndpoints counts the Service's ready endpoints on this node.
	LocalEndpoints int
}

// HealthChecks returns the health checks to answer, sorted by port.
func HealthChecks(in Inputs) []HealthCheck {
	byPort := map[uint16]HealthCheck{}
	for _, svc := range in.Services {
		if svc.Spec.HealthCheckNodePort == 0 || !isProxied(svc) {
			continue
		}
		check := HealthCheck{
			Service: types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name},
			Port:    uint16(svc.Spec.HealthCheckNodePort),
		}
		if have, ok := byPort[check.Port]; !ok || check.Service.String() < have.Service.String() {
			byPort[check.Port] = check
		}
	}
	if len(byPort) == 0 {
		return nil
	}
	local := localReady(in.NodeName, in.EndpointSlices)
	checks := make([]HealthCheck, 0, len(byPort))
	for _, check := range byPort {
		check.LocalEndpoints = len(local[check.Service])
		checks = append(checks, check)
	}
	slices.SortFunc(checks, func(a, b HealthCheck) int { return cmp.Compare(a.Port, b.Port) })
	return checks
}

// localReady returns the ready addresses on this node, per Service.
func localReady(nodeName string, slicesOf []*discoveryv1.EndpointSlice) map[types.NamespacedName]map[string]bool {
	local := map[types.NamespacedName]map[string]bool{}
	for _, slice := range slicesOf {
		svc := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 || deref(e.NodeName, "") != nodeName || !deref(e.Conditions.Ready, true) {
				continue
			}
			if local[svc] == nil {
				local[svc] = map[string]bool{}
			}
			local[svc][e.Addresses[0]] = true
		}
	}
	return local
}
