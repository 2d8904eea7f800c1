package dns

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// The specification's version (section 2.2), and how long answers may be kept.
const (
	specVersion = "1.1.0"
	ttlSeconds  = 5
)

// zone answers questions about the cluster.
type zone struct {
	domain   string // canonical
	dnsAddrs []netip.Addr
	prefixes []netip.Prefix
	records  records
}

// reply is an answer of the zone. chase is the target of a CNAME that is to be
// looked up as well.
type reply struct {
	rcode                    int
	answer, authority, extra []dns.RR
	chase                    string
}

// answer reports whether the question is about the cluster, and if so,
// answers it.
func (z *zone) answer(q dns.Question) (r reply, isOurs bool) {
	qname := dns.CanonicalName(q.Name)
	if addr, ok := parseReverse(qname); ok {
		return z.answerReverse(q, addr)
	}
	n, isIn := parseName(qname, z.domain)
	if !isIn {
		return reply{}, false
	}
	if !z.records.hasSynced() {
		return reply{rcode: dns.RcodeServerFailure}, true
	}
	return z.complete(z.lookup(q, n)), true
}

// found is what a name has. exists tells an empty answer (NODATA) from no such
// name (NXDOMAIN, RFC 2308).
type found struct {
	exists        bool
	answer, extra []dns.RR
	chase         string
}

func (z *zone) complete(f found) reply {
	r := reply{answer: f.answer, extra: f.extra, chase: f.chase}
	if !f.exists {
		r.rcode = dns.RcodeNameError
	}
	if len(r.answer) == 0 {
		r.authority = []dns.RR{z.soa()}
	}
	return r
}

func (z *zone) soa() dns.RR {
	return &dns.SOA{
		Hdr: header(z.domain, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlSeconds,
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttlSeconds}
}

// lookup finds what the zone has of a name. Services and pods have files of
// their own.
func (z *zone) lookup(q dns.Question, n name) found {
	switch n.kind {
	case apex:
		return z.lookupApex(q)
	case dnsZone, svcZone, podZone:
		return found{exists: true}
	case nameserver:
		return found{exists: true, answer: addressRecords(q.Name, q.Qtype, z.dnsAddrs)}
	case dnsVersion:
		f := found{exists: true}
		if q.Qtype == dns.TypeTXT {
			f.answer = []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{specVersion}}}
		}
		return f
	case svcNamespace, podNamespace:
		return found{exists: z.records.hasNamespace(n.namespace)}
	case podAddress:
		return z.lookupPod(q, n)
	case serviceName, endpointName, protocolName, portName:
		if svc := z.records.service(n.namespace, n.service); svc != nil {
			return z.lookupService(q, n, svc)
		}
	}
	return found{}
}

func (z *zone) lookupApex(q dns.Question) found {
	f := found{exists: true}
	switch q.Qtype {
	case dns.TypeSOA:
		f.answer = []dns.RR{z.soa()}
	case dns.TypeNS:
		ns := "ns.dns." + z.domain
		f.answer = []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: ns}}
		f.extra = bothFamilies(ns, z.dnsAddrs)
	}
	return f
}

// lookupPod answers with the address that the name spells, as CoreDNS's
// "pods insecure": pods are not looked up, their namespace must exist.
func (z *zone) lookupPod(q dns.Question, n name) found {
	addr, ok := undash(n.endpoint)
	if !ok || !z.records.hasNamespace(n.namespace) {
		return found{}
	}
	return found{exists: true, answer: addressRecords(q.Name, q.Qtype, []netip.Addr{addr})}
}

// answerReverse names ClusterIPs and endpoints of headless Services. Unknown
// addresses of the cluster have no name; all others are for upstream.
func (z *zone) answerReverse(q dns.Question, addr netip.Addr) (reply, bool) {
	isOurs := slices.ContainsFunc(z.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
	if !z.records.hasSynced() {
		return reply{rcode: dns.RcodeServerFailure}, isOurs
	}
	names := z.namesOf(addr)
	if len(names) == 0 {
		return z.complete(found{}), isOurs
	}
	f := found{exists: true}
	if q.Qtype == dns.TypePTR {
		for _, n := range names {
			f.answer = append(f.answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: n})
		}
	}
	return z.complete(f), true
}

func (z *zone) namesOf(addr netip.Addr) []string {
	var names []string
	for _, svc := range z.records.servicesWith(addr) {
		names = append(names, z.serviceFQDN(svc))
	}
	if len(names) == 0 {
		for _, slice := range z.records.slicesWith(addr) {
			svc := z.records.service(slice.Namespace, slice.Labels[labelServiceName])
			if svc == nil || !isHeadless(svc) {
				continue
			}
			for _, e := range endpointsOf(svc, slice) {
				if e.addr == addr {
					names = append(names, e.host+"."+z.serviceFQDN(svc))
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (z *zone) serviceFQDN(svc *corev1.Service) string {
	return svc.Name + "." + svc.Namespace + ".svc." + z.domain
}

// addressRecords are the addresses of the family that qtype asks for, in
// random order: many clients use the first.
func addressRecords(name string, qtype uint16, addrs []netip.Addr) []dns.RR {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	var rrs []dns.RR
	for _, addr := range addrs {
		switch {
		case qtype == dns.TypeA && addr.Is4():
			rrs = append(rrs, &dns.A{Hdr: header(name, qtype), A: addr.AsSlice()})
		case qtype == dns.TypeAAAA && addr.Is6():
			rrs = append(rrs, &dns.AAAA{Hdr: header(name, qtype), AAAA: addr.AsSlice()})
		}
	}
	return rrs
}

func bothFamilies(name string, addrs []netip.Addr) []dns.RR {
	return append(addressRecords(name, dns.TypeA, addrs), addressRecords(name, dns.TypeAAAA, addrs)...)
}

// compareSRV gives SRV records an order that does not depend on maps.
func compareSRV(a, b *dns.SRV) int {
	return cmp.Or(strings.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
}
