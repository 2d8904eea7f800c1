package endpointslicemirroring

//lint:file-ignore SA1019 users still write Endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/endpointslice/util"
	utilnet "k8s.io/utils/net"

	"weft.dev/weft/controlplane/controllers/endpoints"
)

const (
	// managedBy is upstream's name, so that slices stay in the same hands when
	// a cluster moves between the two.
	managedBy = "endpointslicemirroring-controller.k8s.io"
	// maxAddresses is how many addresses of one subset are mirrored.
	maxAddresses = 1000
)

var endpointsKind = corev1.SchemeGroupVersion.WithKind("Endpoints")

// plan is what one step does for one Endpoints object.
type plan struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
	// Invalid addresses, and those Beyond the limit, are not mirrored.
	Invalid, Beyond int
}

// isMirrored reports whether slices are made from e: it has a Service without
// a selector, was not opted out, and is not a lock of former leader elections.
func isMirrored(e *corev1.Endpoints, service *corev1.Service) bool {
	if e == nil || e.Labels[discoveryv1.LabelSkipMirror] == "true" {
		return false
	}
	_, isLock := e.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]
	return !isLock && service != nil && service.Spec.Selector == nil
}

// decide compares the Endpoints of a Service with their slices, which are all
// that this controller made for the Service. Endpoints and Service are nil if
// there are none.
func decide(e *corev1.Endpoints, service *corev1.Service, have []*discoveryv1.EndpointSlice) plan {
	var p plan
	have = slices.SortedFunc(slices.Values(have), func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	var missing []*discoveryv1.EndpointSlice
	if isMirrored(e, service) {
		for _, want := range p.slicesOf(e) {
			// The slice of these ports, if any, else one that is free below.
			i := slices.IndexFunc(have, func(s *discoveryv1.EndpointSlice) bool { return keyOf(s) == keyOf(want) })
			if i < 0 {
				missing = append(missing, want)
				continue
			}
			p.update(have[i], want)
			have = slices.Delete(have, i, i+1)
		}
	}
	for _, want := range missing {
		i := slices.IndexFunc(have, func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == want.AddressType })
		switch {
		case i >= 0:
			p.update(have[i], want)
			have = slices.Delete(have, i, i+1)
		case e.DeletionTimestamp == nil: // else it would be collected at once
			p.Create = append(p.Create, want)
		}
	}
	p.Delete = have
	return p
}

// update makes have equal to want, unless it is.
func (p *plan) update(have, want *discoveryv1.EndpointSlice) {
	updated := have.DeepCopy()
	updated.Labels, updated.Annotations, updated.OwnerReferences = want.Labels, want.Annotations, want.OwnerReferences
	updated.Endpoints = want.Endpoints
	if keyOf(have) != keyOf(want) { // else they differ in order at most
		updated.Ports = want.Ports
	}
	if !equality.Semantic.DeepEqual(have, updated) {
		p.Update = append(p.Update, updated)
	}
}

// keyOf is the same for slices of the same family and ports, in any order.
func keyOf(s *discoveryv1.EndpointSlice) string {
	return fmt.Sprint(s.AddressType, util.NewPortMapKey(slices.Clone(s.Ports)))
}

// slicesOf returns the slices that say what e says: one for each subset and
// family.
func (p *plan) slicesOf(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for _, subset := range endpoints.Canonical(e.Subsets) {
		byFamily := map[discoveryv1.AddressType][]discoveryv1.Endpoint{}
		n := 0
		add := func(addresses []corev1.EndpointAddress, ready bool) {
			for _, address := range addresses {
				family, endpoint, valid := mirror(address, ready)
				switch {
				case !valid:
					p.Invalid++
				case n == maxAddresses:
					p.Beyond++
				default:
					n++
					byFamily[family] = append(byFamily[family], endpoint)
				}
			}
		}
		add(subset.Addresses, true)
		add(subset.NotReadyAddresses, false)
		for _, family := range slices.Sorted(maps.Keys(byFamily)) {
			all = append(all, newSlice(e, family, subset.Ports, byFamily[family]))
		}
	}
	return all
}

func mirror(address corev1.EndpointAddress, ready bool) (discoveryv1.AddressType, discoveryv1.Endpoint, bool) {
	ip := utilnet.ParseIPSloppy(address.IP)
	if ip == nil {
		return "", discoveryv1.Endpoint{}, false
	}
	family := discoveryv1.AddressTypeIPv6
	if ip.To4() != nil {
		family = discoveryv1.AddressTypeIPv4
	}
	endpoint := discoveryv1.Endpoint{
		Addresses:  []string{ip.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		TargetRef:  address.TargetRef,
		NodeName:   address.NodeName,
	}
	if address.Hostname != "" {
		endpoint.Hostname = &address.Hostname
	}
	return family, endpoint, true
}

func newSlice(e *corev1.Endpoints, family discoveryv1.AddressType, ports []corev1.EndpointPort, list []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	labels, annotations := map[string]string{}, map[string]string{}
	maps.Copy(labels, e.Labels)
	labels[discoveryv1.LabelServiceName] = e.Name
	labels[discoveryv1.LabelManagedBy] = managedBy
	maps.Copy(annotations, e.Annotations)
	delete(annotations, corev1.EndpointsLastChangeTriggerTime)
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       e.Namespace,
			GenerateName:    e.Name + "-",
			Labels:          labels,
			Annotations:     annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, endpointsKind)},
		},
		AddressType: family,
		Endpoints:   list,
	}
	for _, p := range ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return slice
}
