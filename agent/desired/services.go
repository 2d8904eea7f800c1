package desired

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/dataplane/service"
)

// labelServiceProxyName hands a Service to another proxy
// (Kubernetes "Well-Known Labels", service.kubernetes.io/service-proxy-name).
const labelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// annotationSourceRanges is the old spelling of loadBalancerSourceRanges,
// still documented for core/v1 Service.
const annotationSourceRanges = corev1.AnnotationLoadBalancerSourceRangesKey

// frontendKey is what no two frontends of a State share.
type frontendKey struct {
	addr     netip.Addr
	port     uint16
	protocol service.Protocol
}

// frontends collects frontends, one per key.
type frontends map[frontendKey]service.Frontend

// add keeps, of two frontends with one key, the one that comes first by kind,
// then by name, so that the outcome does not depend on the order of adding.
func (f frontends) add(front service.Frontend) {
	key := frontendKey{front.Addr, front.Port, front.Protocol}
	have, ok := f[key]
	if ok && cmp.Or(cmp.Compare(have.Kind, front.Kind), cmp.Compare(have.Service, front.Service)) <= 0 {
		return
	}
	f[key] = front
}

func (f frontends) sorted() []service.Frontend {
	list := make([]service.Frontend, 0, len(f))
	for _, front := range f {
		list = append(list, front)
	}
	slices.SortFunc(list, func(a, b service.Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return list
}

// dnsService names the frontends of the cluster DNS address. It sorts before
// every Service of the API, so that it wins over one with the same address.
const dnsService = "-/cluster-dns:dns"

// addDNS sends the cluster DNS addresses to this node's own DNS server.
func (f frontends) addDNS(node localNode, clusterDNS []netip.Addr, port uint16) {
	for _, addr := range clusterDNS {
		own := slices.IndexFunc(node.addresses, func(a netip.Addr) bool { return a.Is4() == addr.Is4() })
		if own < 0 {
			continue
		}
		backend := []service.Backend{{Addr: node.addresses[own], Port: port}}
		for _, protocol := range []service.Protocol{service.UDP, service.TCP} {
			f.add(service.Frontend{
				Service: dnsService, Kind: service.ClusterIP,
				Addr: addr, Port: 53, Protocol: protocol,
				Internal: backend, External: backend,
			})
		}
	}
}

// addService adds the frontends of all ports of a Service, whose endpoints
// they are.
func (f frontends) addService(node localNode, svc *corev1.Service, endpoints map[portKey][]endpoint) {
	if !isProxied(svc) {
		return
	}
	for _, port := range svc.Spec.Ports {
		protocol, ok := protocolNumber(port.Protocol)
		if !ok {
			continue
		}
		p := servicePort{
			frontends: f, node: node, svc: svc, port: port,
			name:     svc.Namespace + "/" + svc.Name + ":" + port.Name,
			protocol: protocol,
			v4:       choose(node, endpoints[keyOf(port, true)]),
			v6:       choose(node, endpoints[keyOf(port, false)]),
		}
		p.addClusterIPs()
		p.addNodePorts()
		p.addExternal(service.ExternalIP, svc.Spec.ExternalIPs, nil)
		p.addExternal(service.LoadBalancer, loadBalancerIPs(svc), sourceRanges(svc))
	}
}

// isProxied excludes Services without virtual address and those of another
// proxy.
func isProxied(svc *corev1.Service) bool {
	_, otherProxy := svc.Labels[labelServiceProxyName]
	return !otherProxy &&
		svc.Spec.Type != corev1.ServiceTypeExternalName &&
		svc.Spec.ClusterIP != corev1.ClusterIPNone && svc.Spec.ClusterIP != ""
}

func keyOf(port corev1.ServicePort, is4 bool) portKey {
	return portKey{port: port.Name, protocol: cmp.Or(port.Protocol, corev1.ProtocolTCP), is4: is4}
}

func protocolNumber(p corev1.Protocol) (service.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return service.TCP, true
	case corev1.ProtocolUDP:
		return service.UDP, true
	case corev1.ProtocolSCTP:
		return service.SCTP, true
	default:
		return 0, false
	}
}

// servicePort is one port of one Service on its way to frontends.
type servicePort struct {
	frontends
	node     localNode
	svc      *corev1.Service
	port     corev1.ServicePort
	name     string
	protocol service.Protocol
	v4, v6   choice
}

func (p servicePort) choice(addr netip.Addr) choice {
	if addr.Is4() {
		return p.v4
	}
	return p.v6
}

func (p servicePort) frontend(kind service.Kind, addr netip.Addr, port int32) service.Frontend {
	return service.Frontend{
		Service: p.name, Kind: kind,
		Addr: addr, Port: uint16(port), Protocol: p.protocol,
		Affinity: affinity(p.svc),
	}
}

// addClusterIPs: internalTrafficPolicy decides for every client.
func (p servicePort) addClusterIPs() {
	for _, addr := range parseAddrs(clusterIPs(p.svc)) {
		front, c := p.frontend(service.ClusterIP, addr, p.port.Port), p.choice(addr)
		front.Internal = c.cluster
		if deref(p.svc.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster) == corev1.ServiceInternalTrafficPolicyLocal {
			front.Internal = c.local
			front.DropInternal = len(c.local) == 0 && c.hasAny
		}
		front.External, front.DropExternal = front.Internal, front.DropInternal
		p.add(front)
	}
}

// addNodePorts expands a node port to every address of this node, and to
// loopback for the node's own processes.
func (p servicePort) addNodePorts() {
	if p.port.NodePort == 0 || !isExternallyAccessible(p.svc) {
		return
	}
	for _, addr := range p.node.addresses {
		if hasFamily(p.svc, addr) {
			p.add(p.external(service.NodePort, addr, p.port.NodePort))
		}
	}
	for _, addr := range []netip.Addr{loopback4, netip.IPv6Loopback()} {
		if hasFamily(p.svc, addr) {
			front := p.frontend(service.NodePort, addr, p.port.NodePort)
			front.Internal = p.choice(addr).cluster
			p.add(front)
		}
	}
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// addExternal adds addresses that the outside routes to this node. Source
// ranges hold for the family of the address.
func (p servicePort) addExternal(kind service.Kind, addrs []string, ranges []netip.Prefix) {
	for _, addr := range parseAddrs(addrs) {
		front := p.external(kind, addr, p.port.Port)
		for _, r := range ranges {
			if r.Addr().Is4() == addr.Is4() {
				front.SourceRanges = append(front.SourceRanges, r)
			}
		}
		p.add(front)
	}
}

// external is a frontend under externalTrafficPolicy. Traffic of this node and
// its pods to external addresses is cut short to all endpoints whatever the
// policy (kube-proxy, "pod traffic for external destinations").
func (p servicePort) external(kind service.Kind, addr netip.Addr, port int32) service.Frontend {
	front, c := p.frontend(kind, addr, port), p.choice(addr)
	front.Internal, front.External = c.cluster, c.cluster
	if p.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		front.External = c.local
		front.KeepSource = true
		front.DropExternal = len(c.local) == 0 && c.hasAny
	}
	return front
}

func isExternallyAccessible(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func clusterIPs(svc *corev1.Service) []string {
	if len(svc.Spec.ClusterIPs) > 0 {
		return svc.Spec.ClusterIPs
	}
	return []string{svc.Spec.ClusterIP}
}

func hasFamily(svc *corev1.Service, addr netip.Addr) bool {
	return slices.ContainsFunc(parseAddrs(clusterIPs(svc)), func(a netip.Addr) bool { return a.Is4() == addr.Is4() })
}

// loadBalancerIPs are those of ipMode VIP: with Proxy, the load balancer
// sends to node ports and the address is not the node's business (KEP-1860).
func loadBalancerIPs(svc *corev1.Service) []string {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var ips []string
	for _, ingress := range svc.Status.LoadBalancer.Ingress {
		if ingress.IP != "" && deref(ingress.IPMode, corev1.LoadBalancerIPModeVIP) == corev1.LoadBalancerIPModeVIP {
			ips = append(ips, ingress.IP)
		}
	}
	return ips
}

// sourceRanges returns the client prefixes a load balancer address serves,
// sorted; none means all.
func sourceRanges(svc *corev1.Service) []netip.Prefix {
	ranges := svc.Spec.LoadBalancerSourceRanges
	if annotation := svc.Annotations[annotationSourceRanges]; len(ranges) == 0 && annotation != "" {
		ranges = strings.Split(annotation, ",")
	}
	var prefixes []netip.Prefix
	for _, r := range ranges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(prefixes)
}

func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil {
		seconds = deref(c.ClientIP.TimeoutSeconds, seconds)
	}
	return time.Duration(seconds) * time.Second
}

func parseAddrs(list []string) []netip.Addr {
	var addrs []netip.Addr
	for _, s := range list {
		if addr, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}
