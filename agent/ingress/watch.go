package ingress

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
)

// serviceIndex finds EndpointSlices by their Service.
const serviceIndex = "weft.dev/ingress-service"

// watched is what the informers know.
type watched struct {
	ingresses networkinglisters.IngressLister
	classes   networkinglisters.IngressClassLister
	services  corelisters.ServiceLister
	nodes     corelisters.NodeLister
	slices    cache.Indexer
	synced    []cache.InformerSynced
}

// register adds handlers that mark the component dirty.
func (i *Ingress) register(factory informers.SharedInformerFactory) (watched, error) {
	slices := factory.Discovery().V1().EndpointSlices().Informer()
	w := watched{
		ingresses: factory.Networking().V1().Ingresses().Lister(),
		classes:   factory.Networking().V1().IngressClasses().Lister(),
		services:  factory.Core().V1().Services().Lister(),
		nodes:     factory.Core().V1().Nodes().Lister(),
		slices:    slices.GetIndexer(),
	}
	if err := slices.AddIndexers(cache.Indexers{serviceIndex: sliceService}); err != nil {
		return w, fmt.Errorf("index EndpointSlices: %w", err)
	}
	always := func(any) bool { return true }
	for _, source := range []struct {
		informer cache.SharedIndexInformer
		matters  func(any) bool
	}{
		{factory.Networking().V1().Ingresses().Informer(), always},
		{factory.Networking().V1().IngressClasses().Informer(), always},
		{factory.Core().V1().Services().Informer(), i.isUsed},
		{slices, i.isUsed},
	} {
		registration, err := source.informer.AddEventHandler(cache.FilteringResourceEventHandler{
			FilterFunc: source.matters,
			Handler: cache.ResourceEventHandlerFuncs{
				AddFunc:    func(any) { i.markDirty() },
				UpdateFunc: func(any, any) { i.markDirty() },
				DeleteFunc: func(any) { i.markDirty() },
			},
		})
		if err != nil {
			return w, fmt.Errorf("watch for the ingress: %w", err)
		}
		w.synced = append(w.synced, registration.HasSynced)
	}
	w.synced = append(w.synced, factory.Core().V1().Nodes().Informer().HasSynced)
	return w, nil
}

func sliceService(object any) ([]string, error) {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, nil
	}
	return []string{types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}.String()}, nil
}

// isUsed reports whether object is a Service that an Ingress names, or one of
// its EndpointSlices.
func (i *Ingress) isUsed(object any) bool {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	used := *i.used.Load()
	switch o := object.(type) {
	case *corev1.Service:
		return used[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}]
	case *discoveryv1.EndpointSlice:
		return used[types.NamespacedName{Namespace: o.Namespace, Name: o.Labels[discoveryv1.LabelServiceName]}]
	}
	return true
}
