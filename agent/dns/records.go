package dns

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// The indexes that questions are answered by.
const (
	byService = "weft-dns-service" // EndpointSlices by namespace/service
	byAddress = "weft-dns-address" // EndpointSlices by endpoint, Services by ClusterIP
)

var (
	sliceIndexers   = cache.Indexers{byService: sliceService, byAddress: sliceAddresses}
	serviceIndexers = cache.Indexers{byAddress: serviceAddresses}
)

// records is the cluster as the informers know it. Objects are never modified.
type records struct {
	services, slices, namespaces cache.Indexer
	hasSynced                    func() bool
}

// watch adds the indexes to the informers, which must not run yet.
func watch(f informers.SharedInformerFactory) (records, error) {
	services := f.Core().V1().Services().Informer()
	slices := f.Discovery().V1().EndpointSlices().Informer()
	namespaces := f.Core().V1().Namespaces().Informer()
	if err := services.AddIndexers(serviceIndexers); err != nil {
		return records{}, fmt.Errorf("index services: %w", err)
	}
	if err := slices.AddIndexers(sliceIndexers); err != nil {
		return records{}, fmt.Errorf("index endpoint slices: %w", err)
	}
	return records{
		services: services.GetIndexer(), slices: slices.GetIndexer(), namespaces: namespaces.GetIndexer(),
		hasSynced: func() bool { return services.HasSynced() && slices.HasSynced() && namespaces.HasSynced() },
	}, nil
}

func sliceService(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return nil, nil
	}
	return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
}

func sliceAddresses(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, nil
	}
	var addrs []string
	for _, e := range s.Endpoints {
		addrs = append(addrs, canonical(e.Addresses)...)
	}
	return addrs, nil
}

func serviceAddresses(obj any) ([]string, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return nil, nil
	}
	return canonical(s.Spec.ClusterIPs), nil
}

// canonical drops what is no address, such as "None".
func canonical(list []string) []string {
	var addrs []string
	for _, s := range list {
		if addr, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, addr.String())
		}
	}
	return addrs
}

func (r records) service(namespace, name string) *corev1.Service {
	// The store of an informer returns no errors.
	obj, _, _ := r.services.GetByKey(namespace + "/" + name)
	svc, _ := obj.(*corev1.Service)
	return svc
}

func (r records) hasNamespace(name string) bool {
	_, ok, _ := r.namespaces.GetByKey(name)
	return ok
}

func (r records) slicesOf(namespace, service string) []*discoveryv1.EndpointSlice {
	return indexed[*discoveryv1.EndpointSlice](r.slices, byService, namespace+"/"+service)
}

func (r records) slicesWith(addr netip.Addr) []*discoveryv1.EndpointSlice {
	return indexed[*discoveryv1.EndpointSlice](r.slices, byAddress, addr.String())
}

func (r records) servicesWith(addr netip.Addr) []*corev1.Service {
	return indexed[*corev1.Service](r.services, byAddress, addr.String())
}

func indexed[T any](indexer cache.Indexer, index, key string) []T {
	objs, err := indexer.ByIndex(index, key)
	if err != nil { // no such index: excluded by watch
		return nil
	}
	list := make([]T, 0, len(objs))
	for _, obj := range objs {
		if t, ok := obj.(T); ok {
			list = append(list, t)
		}
	}
	return list
}
