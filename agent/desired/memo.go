package desired

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/dataplane/service"
)

// Memo remembers the frontends of each Service, so that computing again costs
// what has changed and not what there is. Objects are compared by identity:
// informers replace an object that changes and keep one that does not. The
// zero Memo is empty. It is not safe for concurrent use.
type Memo struct {
	node  localNode
	known map[types.NamespacedName]remembered
}

// remembered is what one Service led to on this node.
type remembered struct {
	service   *corev1.Service
	slices    []*discoveryv1.EndpointSlice
	frontends []service.Frontend
}

// is reports whether it was computed from these very objects.
func (r remembered) is(svc *corev1.Service, slicesOf []*discoveryv1.EndpointSlice) bool {
	if r.service != svc || len(r.slices) != len(slicesOf) {
		return false
	}
	for _, slice := range slicesOf { // in any order; a Service has few
		if !slices.Contains(r.slices, slice) {
			return false
		}
	}
	return true
}

// services returns the frontends of all Services; two may have the same key.
func (m *Memo) services(node localNode, services []*corev1.Service, slicesOf []*discoveryv1.EndpointSlice) []service.Frontend {
	known := m.known
	if !node.equal(m.node) {
		known = nil
	}
	byService := make(map[types.NamespacedName][]*discoveryv1.EndpointSlice, len(services))
	for _, slice := range slicesOf {
		if name := slice.Labels[discoveryv1.LabelServiceName]; name != "" {
			key := types.NamespacedName{Namespace: slice.Namespace, Name: name}
			byService[key] = append(byService[key], slice)
		}
	}
	m.node, m.known = node, make(map[types.NamespacedName]remembered, len(services))
	all := make([]service.Frontend, 0, len(services))
	for _, svc := range services {
		key := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
		have, ok := known[key]
		if !ok || !have.is(svc, byService[key]) {
			f := frontends{}
			f.addService(node, svc, endpointsByPort(node.name, byService[key]))
			have = remembered{svc, byService[key], slices.Collect(maps.Values(f))}
		}
		m.known[key] = have
		all = append(all, have.frontends...)
	}
	return all
}

func (n localNode) equal(other localNode) bool {
	return n.name == other.name && n.zone == other.zone && slices.Equal(n.addresses, other.addresses)
}
