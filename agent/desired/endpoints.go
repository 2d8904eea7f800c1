package desired

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weft.dev/weft/dataplane/service"
)

// portKey names the endpoints of one port of a Service in one address family,
// as kube-proxy does: by the port's name, not its number.
type portKey struct {
	port     string
	protocol corev1.Protocol
	is4      bool
}

// endpoint is one address behind a Service port and all that the choice
// between endpoints looks at.
type endpoint struct {
	service.Backend
	// isReady may take connections. isDraining is terminating but still
	// serving: used when nothing is ready (KEP-1669).
	isReady    bool
	isDraining bool
	isLocal    bool
	nodeHints  []discoveryv1.ForNode
	zoneHints  []discoveryv1.ForZone
}

// endpointsByPort sorts the endpoints of a Service's slices under the ports
// they belong to. Each list is sorted and has an address once.
func endpointsByPort(nodeName string, slicesOf []*discoveryv1.EndpointSlice) map[portKey][]endpoint {
	byPort := map[portKey][]endpoint{}
	for _, slice := range slicesOf {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, port := range slice.Ports {
			if port.Port == nil { // all ports: only for headless Services
				continue
			}
			key := portKey{
				port: deref(port.Name, ""), protocol: deref(port.Protocol, corev1.ProtocolTCP),
				is4: slice.AddressType == discoveryv1.AddressTypeIPv4,
			}
			for i := range slice.Endpoints {
				if e, ok := newEndpoint(nodeName, &slice.Endpoints[i], key.is4, *port.Port); ok {
					byPort[key] = append(byPort[key], e)
				}
			}
		}
	}
	for key, list := range byPort {
		slices.SortFunc(list, compareEndpoints)
		byPort[key] = slices.CompactFunc(list, func(a, b endpoint) bool { return a.Backend == b.Backend })
	}
	return byPort
}

func newEndpoint(nodeName string, e *discoveryv1.Endpoint, is4 bool, port int32) (endpoint, bool) {
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0]) // more than one have no meaning (discovery/v1)
	if err != nil || addr.Is4() != is4 {
		return endpoint{}, false
	}
	ep := endpoint{
		Backend:    service.Backend{Addr: addr, Port: uint16(port)},
		isReady:    deref(e.Conditions.Ready, true),
		isDraining: deref(e.Conditions.Serving, true) && deref(e.Conditions.Terminating, false),
		isLocal:    e.NodeName != nil && *e.NodeName == nodeName,
	}
	if e.Hints != nil {
		ep.nodeHints, ep.zoneHints = e.Hints.ForNodes, e.Hints.ForZones
	}
	return ep, true
}

// compareEndpoints sorts by address. Of an address that two slices have, for
// a moment, while it moves between them, the better one comes first.
func compareEndpoints(a, b endpoint) int {
	return cmp.Or(
		compareBackends(a.Backend, b.Backend),
		trueFirst(a.isReady, b.isReady),
		trueFirst(a.isDraining, b.isDraining),
		trueFirst(a.isLocal, b.isLocal),
		slices.CompareFunc(a.nodeHints, b.nodeHints, func(x, y discoveryv1.ForNode) int { return cmp.Compare(x.Name, y.Name) }),
		slices.CompareFunc(a.zoneHints, b.zoneHints, func(x, y discoveryv1.ForZone) int { return cmp.Compare(x.Name, y.Name) }),
	)
}

func compareBackends(a, b service.Backend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// choice is the outcome of choosing between a Service port's endpoints.
type choice struct {
	// cluster are for traffic policy Cluster, local for Local. Both are ready
	// endpoints or, independently, draining ones where none is ready.
	cluster []service.Backend
	local   []service.Backend
	// hasAny says that some endpoint of the cluster could serve.
	hasAny bool
}

// choose follows CategorizeEndpoints of k8s.io/kubernetes/pkg/proxy/topology.go.
func choose(node localNode, endpoints []endpoint) choice {
	inReach := reach(node, endpoints)
	c := choice{
		cluster: backends(endpoints, func(e endpoint) bool { return e.isReady && inReach(e) }),
		local:   backends(endpoints, func(e endpoint) bool { return e.isReady && e.isLocal }),
	}
	if len(c.cluster) == 0 { // then nothing at all is ready: hints never empty the list
		c.cluster = backends(endpoints, func(e endpoint) bool { return e.isDraining })
	}
	if len(c.local) == 0 {
		c.local = backends(endpoints, func(e endpoint) bool { return e.isDraining && e.isLocal })
	}
	c.hasAny = len(c.cluster) > 0 || len(c.local) > 0
	return c
}

func backends(endpoints []endpoint, isWanted func(endpoint) bool) []service.Backend {
	var bs []service.Backend
	for _, e := range endpoints {
		if isWanted(e) {
			bs = append(bs, e.Backend)
		}
	}
	return bs
}

// reach is which ready endpoints topology hints leave to this node
// (Service.spec.trafficDistribution): those hinted for the node, if every
// ready endpoint has node hints and one names it; else the same by zone; else
// all.
func reach(node localNode, endpoints []endpoint) func(endpoint) bool {
	forNode := func(e endpoint) bool {
		return slices.Contains(e.nodeHints, discoveryv1.ForNode{Name: node.name})
	}
	forZone := func(e endpoint) bool {
		return slices.Contains(e.zoneHints, discoveryv1.ForZone{Name: node.zone})
	}
	allNode, anyNode, allZone, anyZone := true, false, true, false
	for _, e := range endpoints {
		if !e.isReady {
			continue
		}
		allNode = allNode && len(e.nodeHints) > 0
		allZone = allZone && len(e.zoneHints) > 0
		anyNode = anyNode || forNode(e)
		anyZone = anyZone || forZone(e)
	}
	switch {
	case allNode && anyNode:
		return forNode
	case allZone && anyZone:
		return forZone
	default:
		return func(endpoint) bool { return true }
	}
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
