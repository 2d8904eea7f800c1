package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// kind is what a name in the cluster domain can stand for.
type kind uint8

const (
	unknown      kind = iota
	apex              // DOMAIN
	dnsVersion        // dns-version.DOMAIN
	dnsZone           // dns.DOMAIN: exists because of the next
	nameserver        // ns.dns.DOMAIN
	svcZone           // svc.DOMAIN
	podZone           // pod.DOMAIN
	svcNamespace      // NS.svc.DOMAIN
	podNamespace      // NS.pod.DOMAIN
	podAddress        // 10-244-1-5.NS.pod.DOMAIN
	serviceName       // SVC.NS.svc.DOMAIN
	endpointName      // HOST.SVC.NS.svc.DOMAIN
	protocolName      // _tcp.SVC.NS.svc.DOMAIN
	portName          // _PORT._tcp.SVC.NS.svc.DOMAIN
)

// name is a name in the cluster domain, taken apart.
type name struct {
	kind               kind
	namespace, service string
	endpoint           string // host name, or the pod's address in dashes
	port, protocol     string // without underscore
}

// parseName takes qname apart; both must be canonical (dns.CanonicalName). It
// reports whether qname is in domain at all.
func parseName(qname, domain string) (n name, isIn bool) {
	if !dns.IsSubDomain(domain, qname) {
		return name{}, false
	}
	labels := dns.SplitDomainName(qname)
	labels = labels[:len(labels)-dns.CountLabel(domain)]
	if len(labels) == 0 {
		return name{kind: apex}, true
	}
	last, rest := labels[len(labels)-1], labels[:len(labels)-1]
	switch {
	case last == "svc":
		return parseService(rest), true
	case last == "pod":
		return parsePod(rest), true
	case last == "dns-version" && len(rest) == 0:
		return name{kind: dnsVersion}, true
	case last == "dns" && len(rest) == 0:
		return name{kind: dnsZone}, true
	case last == "dns" && len(rest) == 1 && rest[0] == "ns":
		return name{kind: nameserver}, true
	}
	return name{}, true
}

// parseService reads the labels in front of svc.DOMAIN.
func parseService(labels []string) name {
	switch l := labels; len(l) {
	case 0:
		return name{kind: svcZone}
	case 1:
		return name{kind: svcNamespace, namespace: l[0]}
	case 2:
		return name{kind: serviceName, service: l[0], namespace: l[1]}
	case 3:
		if protocol, ok := strings.CutPrefix(l[0], "_"); ok {
			return name{kind: protocolName, protocol: protocol, service: l[1], namespace: l[2]}
		}
		return name{kind: endpointName, endpoint: l[0], service: l[1], namespace: l[2]}
	case 4:
		port, isPort := strings.CutPrefix(l[0], "_")
		protocol, isProtocol := strings.CutPrefix(l[1], "_")
		if isPort && isProtocol {
			return name{kind: portName, port: port, protocol: protocol, service: l[2], namespace: l[3]}
		}
	}
	return name{}
}

// parsePod reads the labels in front of pod.DOMAIN.
func parsePod(labels []string) name {
	switch l := labels; len(l) {
	case 0:
		return name{kind: podZone}
	case 1:
		return name{kind: podNamespace, namespace: l[0]}
	case 2:
		return name{kind: podAddress, endpoint: l[0], namespace: l[1]}
	}
	return name{}
}

// undash reads an address whose dots or colons are dashes.
func undash(s string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(strings.ReplaceAll(s, "-", ".")); err == nil {
		return addr, true
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(s, "-", ":"))
	return addr, err == nil && addr.Zone() == ""
}

func dash(addr netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())
}

// parseReverse reads an address out of a canonical name below in-addr.arpa or
// ip6.arpa (RFC 1035 section 3.5, RFC 3596 section 2.5).
func parseReverse(qname string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(qname, ".in-addr.arpa."); ok {
		octets := strings.Split(s, ".")
		if len(octets) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(octets[3] + "." + octets[2] + "." + octets[1] + "." + octets[0])
		return addr, err == nil
	}
	s, ok := strings.CutSuffix(qname, ".ip6.arpa.")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		if i < 31 && s[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b.WriteByte(s[2*i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	addr, err := netip.ParseAddr(b.String())
	return addr, err == nil && !addr.Is4In6() && addr.Zone() == ""
}
