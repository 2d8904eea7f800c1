package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const labelServiceName = discoveryv1.LabelServiceName

// host is an endpoint as DNS sees it.
type host struct {
	host  string // its host name, else its address in dashes
	addr  netip.Addr
	ports []port
}

// port is a port of a Service or endpoint.
type port struct {
	name, protocol string // canonical
	number         uint16
}

func isHeadless(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.ClusterIP == corev1.ClusterIPNone
}

// lookupService answers for the names of a Service that exists.
func (z *zone) lookupService(q dns.Question, n name, svc *corev1.Service) found {
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return lookupExternalName(q, n, svc)
	case isHeadless(svc) || n.kind == endpointName:
		return z.lookupHeadless(q, n, svc)
	default:
		return z.lookupClusterIP(q, n, svc)
	}
}

// lookupExternalName: specification section 2.5.
func lookupExternalName(q dns.Question, n name, svc *corev1.Service) found {
	if n.kind != serviceName {
		return found{}
	}
	target := dns.Fqdn(svc.Spec.ExternalName)
	f := found{exists: true}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		f.chase = target
		fallthrough
	case dns.TypeCNAME:
		f.answer = []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}
	}
	return f
}

// lookupClusterIP: specification section 2.3. SRV points to the Service's own
// name.
func (z *zone) lookupClusterIP(q dns.Question, n name, svc *corev1.Service) found {
	addrs := parseAddrs(clusterIPs(svc))
	if n.kind == serviceName && q.Qtype != dns.TypeSRV {
		return found{exists: true, answer: addressRecords(q.Name, q.Qtype, addrs)}
	}
	var ports []port
	for _, p := range svc.Spec.Ports {
		ports = append(ports, newPort(p.Name, p.Protocol, p.Port))
	}
	ports = matching(ports, n)
	if len(ports) == 0 {
		return found{exists: n.kind == serviceName}
	}
	f := found{exists: true}
	if q.Qtype == dns.TypeSRV && n.kind != protocolName {
		target := z.serviceFQDN(svc)
		f.answer = srvRecords(q.Name, func(add func(string, uint16)) {
			for _, p := range ports {
				add(target, p.number)
			}
		})
		f.extra = bothFamilies(target, addrs)
	}
	return f
}

// lookupHeadless: specification section 2.4. Without a ready endpoint the
// name does not exist.
func (z *zone) lookupHeadless(q dns.Question, n name, svc *corev1.Service) found {
	var hosts []host
	for _, slice := range z.records.slicesOf(svc.Namespace, svc.Name) {
		for _, h := range endpointsOf(svc, slice) {
			isNamed := n.kind != endpointName || h.host == n.endpoint
			h.ports = matching(h.ports, n)
			isPort := n.kind == portName || n.kind == protocolName
			if isNamed && (!isPort || len(h.ports) > 0) {
				hosts = append(hosts, h)
			}
		}
	}
	if len(hosts) == 0 {
		return found{}
	}
	if q.Qtype == dns.TypeSRV {
		return z.headlessSRV(q, n, svc, hosts)
	}
	f := found{exists: true}
	if n.kind == serviceName || n.kind == endpointName {
		var addrs []netip.Addr
		for _, h := range hosts {
			addrs = append(addrs, h.addr)
		}
		f.answer = addressRecords(q.Name, q.Qtype, addrs)
	}
	return f
}

// headlessSRV points to each endpoint's own name.
func (z *zone) headlessSRV(q dns.Question, n name, svc *corev1.Service, hosts []host) found {
	f := found{exists: true}
	if n.kind == protocolName {
		return f
	}
	addrs := map[string][]netip.Addr{}
	f.answer = srvRecords(q.Name, func(add func(string, uint16)) {
		for _, h := range hosts {
			target := h.host + "." + z.serviceFQDN(svc)
			for _, p := range h.ports {
				add(target, p.number)
				addrs[target] = append(addrs[target], h.addr)
			}
		}
	})
	for _, rr := range f.answer {
		target := rr.(*dns.SRV).Target
		f.extra = append(f.extra, bothFamilies(target, addrs[target])...)
		delete(addrs, target) // several ports of one target
	}
	return f
}

// srvRecords makes sorted records, each once, of equal priority and weight
// (RFC 2782).
func srvRecords(name string, each func(add func(target string, port uint16))) []dns.RR {
	var srvs []*dns.SRV
	each(func(target string, port uint16) {
		srvs = append(srvs, &dns.SRV{Hdr: header(name, dns.TypeSRV), Target: target, Port: port})
	})
	slices.SortFunc(srvs, compareSRV)
	srvs = slices.CompactFunc(srvs, func(a, b *dns.SRV) bool { return compareSRV(a, b) == 0 })
	var rrs []dns.RR
	for _, srv := range srvs {
		srv.Weight = uint16(max(1, 100/len(srvs)))
		rrs = append(rrs, srv)
	}
	return rrs
}

// matching keeps the ports that the name asks for: all, those of a protocol,
// or the one of that name.
func matching(ports []port, n name) []port {
	if n.kind != portName && n.kind != protocolName {
		return ports
	}
	var of []port
	for _, p := range ports {
		if p.protocol == n.protocol && (n.kind == protocolName || p.name == n.port) {
			of = append(of, p)
		}
	}
	return of
}

func newPort(name string, protocol corev1.Protocol, number int32) port {
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	return port{name: strings.ToLower(name), protocol: strings.ToLower(string(protocol)), number: uint16(number)}
}

// endpointsOf are the endpoints of a slice that DNS may name: the ready ones,
// or all where the Service publishes those that are not.
func endpointsOf(svc *corev1.Service, slice *discoveryv1.EndpointSlice) []host {
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	var ports []port
	for _, p := range slice.Ports {
		if p.Port != nil {
			ports = append(ports, newPort(deref(p.Name), deref(p.Protocol), *p.Port))
		}
	}
	var hosts []host
	for _, e := range slice.Endpoints {
		isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
		if !isReady && !svc.Spec.PublishNotReadyAddresses {
			continue
		}
		for _, addr := range parseAddrs(e.Addresses) {
			h := host{host: strings.ToLower(deref(e.Hostname)), addr: addr, ports: ports}
			if h.host == "" {
				h.host = dash(addr)
			}
			hosts = append(hosts, h)
		}
	}
	return hosts
}

func clusterIPs(svc *corev1.Service) []string {
	if len(svc.Spec.ClusterIPs) > 0 {
		return svc.Spec.ClusterIPs
	}
	return []string{svc.Spec.ClusterIP}
}

func parseAddrs(list []string) []netip.Addr {
	var addrs []netip.Addr
	for _, s := range list {
		if addr, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func deref[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}
