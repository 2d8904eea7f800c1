package endpoints

//lint:file-ignore SA1019 programs still read Endpoints

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/endpointslice"
	"k8s.io/endpointslice/util"
	utilnet "k8s.io/utils/net"
)

// Canonical says the same as subsets in one form only: every port is in exactly
// one subset, ports with the same addresses share one, and all is in order. An
// address that is called both ready and not, on one port, is not ready. The
// result shares no list with subsets.
func Canonical(subsets []corev1.EndpointSubset) []corev1.EndpointSubset {
	byPort := map[port]backends{}
	for _, subset := range subsets {
		if isEmpty(subset) {
			continue
		}
		ports := []port{noPort}
		if len(subset.Ports) > 0 {
			ports = ports[:0]
			for _, p := range subset.Ports {
				ports = append(ports, portOf(p))
			}
		}
		for _, p := range ports {
			if byPort[p] == nil {
				byPort[p] = backends{}
			}
			byPort[p].add(subset.Addresses, true)
			byPort[p].add(subset.NotReadyAddresses, false)
		}
	}

	byBackends := map[string]*corev1.EndpointSubset{}
	for p, b := range byPort {
		name := b.name()
		if byBackends[name] == nil {
			byBackends[name] = b.subset()
		}
		if p != noPort {
			byBackends[name].Ports = append(byBackends[name].Ports, p.api())
		}
	}
	result := make([]corev1.EndpointSubset, 0, len(byBackends))
	for _, subset := range byBackends {
		slices.SortFunc(subset.Ports, func(a, b corev1.EndpointPort) int { return portOf(a).compare(portOf(b)) })
		result = append(result, *subset)
	}
	slices.SortFunc(result, compareSubsets)
	return result
}

func isEmpty(s corev1.EndpointSubset) bool { return len(s.Addresses)+len(s.NotReadyAddresses) == 0 }

// compareSubsets orders canonical subsets: no two of them have a port in common.
func compareSubsets(a, b corev1.EndpointSubset) int {
	first := func(s corev1.EndpointSubset) port {
		if len(s.Ports) == 0 {
			return noPort
		}
		return portOf(s.Ports[0])
	}
	return first(a).compare(first(b))
}

// port is an EndpointPort that can be compared.
type port struct {
	number      int32
	protocol    corev1.Protocol
	name        string
	application string // with a leading "=", to tell "" from nil
}

// noPort stands for that of a headless Service without ports.
var noPort = port{}

func portOf(p corev1.EndpointPort) port {
	result := port{number: p.Port, protocol: p.Protocol, name: p.Name}
	if p.AppProtocol != nil {
		result.application = "=" + *p.AppProtocol
	}
	return result
}

func (p port) api() corev1.EndpointPort {
	result := corev1.EndpointPort{Name: p.name, Port: p.number, Protocol: p.protocol}
	if application, ok := strings.CutPrefix(p.application, "="); ok {
		result.AppProtocol = &application
	}
	return result
}

func (p port) compare(other port) int {
	return cmp.Or(cmp.Compare(p.number, other.number), cmp.Compare(p.protocol, other.protocol),
		cmp.Compare(p.name, other.name), cmp.Compare(p.application, other.application))
}

// backends are the addresses behind one port. Pods that share an address, as
// with host network, are told apart.
type backends map[backendKey]backend

type backendKey struct {
	ip  string
	pod types.UID
}

type backend struct {
	address corev1.EndpointAddress
	ready   bool
}

func (b backends) add(addresses []corev1.EndpointAddress, ready bool) {
	for _, address := range addresses {
		key := backendKey{ip: address.IP}
		if address.TargetRef != nil {
			key.pod = address.TargetRef.UID
		}
		if known, ok := b[key]; !ok {
			b[key] = backend{address, ready}
		} else if known.ready && !ready {
			known.ready = false
			b[key] = known
		}
	}
}

func (b backends) sorted() []backendKey {
	keys := make([]backendKey, 0, len(b))
	for key := range b {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b backendKey) int { return cmp.Or(cmp.Compare(a.ip, b.ip), cmp.Compare(a.pod, b.pod)) })
	return keys
}

// name is the same for equal backends.
func (b backends) name() string {
	var text strings.Builder
	for _, key := range b.sorted() {
		fmt.Fprintf(&text, "%s %s %t\n", key.ip, key.pod, b[key].ready)
	}
	return text.String()
}

func (b backends) subset() *corev1.EndpointSubset {
	subset := &corev1.EndpointSubset{}
	for _, key := range b.sorted() {
		if b[key].ready {
			subset.Addresses = append(subset.Addresses, b[key].address)
		} else {
			subset.NotReadyAddresses = append(subset.NotReadyAddresses, b[key].address)
		}
	}
	return subset
}

// --- Pods ---

// subsetsOf returns where the service's pods are reached, in canonical form.
func subsetsOf(service *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset {
	var all []corev1.EndpointSubset
	for _, pod := range pods {
		if !util.ShouldPodBeInEndpoints(pod, service.Spec.PublishNotReadyAddresses) {
			continue
		}
		address, hasAddress := addressOf(service, pod)
		ports, isReached := portsOf(service, pod)
		if !hasAddress || !isReached {
			continue
		}
		subset := corev1.EndpointSubset{Ports: ports}
		if service.Spec.PublishNotReadyAddresses || util.IsPodReady(pod) {
			subset.Addresses = []corev1.EndpointAddress{address}
		} else {
			subset.NotReadyAddresses = []corev1.EndpointAddress{address}
		}
		all = append(all, subset)
	}
	return Canonical(all)
}

// addressOf returns the pod's address of the service's first family, the only
// one that Endpoints speak of. A pod on a node without that family has none.
func addressOf(service *corev1.Service, pod *corev1.Pod) (corev1.EndpointAddress, bool) {
	wantsIPv6 := isIPv6(service, pod)
	for _, podIP := range pod.Status.PodIPs {
		ip := utilnet.ParseIPSloppy(podIP.IP)
		if ip == nil || utilnet.IsIPv6(ip) != wantsIPv6 {
			continue
		}
		address := corev1.EndpointAddress{
			IP:        ip.String(),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		}
		if pod.Spec.NodeName != "" {
			address.NodeName = new(pod.Spec.NodeName)
		}
		if util.ShouldSetHostname(pod, service) {
			address.Hostname = pod.Spec.Hostname
		}
		return address, true
	}
	return corev1.EndpointAddress{}, false
}

func isIPv6(service *corev1.Service, pod *corev1.Pod) bool {
	if len(service.Spec.IPFamilies) > 0 {
		return service.Spec.IPFamilies[0] == corev1.IPv6Protocol
	}
	// Stored before families were: by its own address, else by the pod's.
	for _, text := range []string{service.Spec.ClusterIP, pod.Status.PodIP} {
		if ip, err := netip.ParseAddr(text); err == nil {
			return ip.Is6()
		}
	}
	return false
}

// portsOf returns the service's ports as the pod serves them, and whether the
// pod is reached at all: through a port, or headless without any.
func portsOf(service *corev1.Service, pod *corev1.Pod) ([]corev1.EndpointPort, bool) {
	if len(service.Spec.Ports) == 0 {
		return nil, service.Spec.ClusterIP == corev1.ClusterIPNone
	}
	var ports []corev1.EndpointPort
	for _, p := range service.Spec.Ports {
		if number, err := endpointslice.FindPort(pod, &p); err == nil { // else the pod has no port of that name
			ports = append(ports, corev1.EndpointPort{Name: p.Name, Port: int32(number), Protocol: p.Protocol, AppProtocol: p.AppProtocol})
		}
	}
	return ports, len(ports) > 0
}

// --- Size ---

// maxAddresses is how many addresses one Endpoints object holds; EndpointSlices
// hold them all.
const maxAddresses = 1000

// truncate leaves at most maxAddresses in subsets, ready ones before others,
// and takes from each subset by its share. It reports whether it left any out.
func truncate(subsets []corev1.EndpointSubset) ([]corev1.EndpointSubset, bool) {
	ready, notReady := 0, 0
	for _, s := range subsets {
		ready += len(s.Addresses)
		notReady += len(s.NotReadyAddresses)
	}
	if ready+notReady <= maxAddresses {
		return subsets, false
	}
	roomForReady := min(ready, maxAddresses)
	roomForOthers := maxAddresses - roomForReady
	leftForReady, leftForOthers := roomForReady, roomForOthers
	for i := range subsets {
		s := &subsets[i]
		s.Addresses = share(s.Addresses, ready, roomForReady, &leftForReady)
		s.NotReadyAddresses = share(s.NotReadyAddresses, notReady, roomForOthers, &leftForOthers)
	}
	return slices.DeleteFunc(subsets, isEmpty), true // the API refuses empty ones
}

// share returns so many of addresses as they are of all, where all get room
// places of which some are left. It takes from left.
func share(addresses []corev1.EndpointAddress, all, room int, left *int) []corev1.EndpointAddress {
	if len(addresses) == 0 {
		return nil
	}
	n := (len(addresses)*room + all - 1) / all // rounded up
	n = min(n, *left)
	*left -= n
	return addresses[:n]
}
