package network

import (
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

var everything = labels.Everything()

// watch has every change that matters mark the kernel dirty.
func (n *Network) watch(f informers.SharedInformerFactory) error {
	services, slices, nodes := f.Core().V1().Services(), f.Discovery().V1().EndpointSlices(), f.Core().V1().Nodes()
	n.services, n.endpointSlices, n.nodes = services.Lister(), slices.Lister(), nodes.Lister()
	for _, w := range []struct {
		informer  cache.SharedIndexInformer
		isRelated func(old, new any) bool
	}{
		{services.Informer(), isChanged},
		{slices.Informer(), isChanged},
		{nodes.Informer(), isNodeChanged},
	} {
		reg, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { wake(n.dirty) },
			DeleteFunc: func(any) { wake(n.dirty) },
			UpdateFunc: func(old, new any) {
				if w.isRelated(old, new) {
					wake(n.dirty)
				}
			},
		})
		if err != nil {
			return fmt.Errorf("network: watch: %w", err)
		}
		n.synced = append(n.synced, reg.HasSynced)
	}
	return nil
}

// isChanged is false for the repetitions of a resync.
func isChanged(old, new any) bool { return version(old) != version(new) }

func version(obj any) string {
	if o, ok := obj.(interface{ GetResourceVersion() string }); ok {
		return o.GetResourceVersion()
	}
	return ""
}

// isNodeChanged ignores heartbeats: every node's status changes often.
func isNodeChanged(old, new any) bool {
	a, okA := old.(*corev1.Node)
	b, okB := new.(*corev1.Node)
	return !okA || !okB ||
		!reflect.DeepEqual(a.Spec.PodCIDRs, b.Spec.PodCIDRs) ||
		a.Spec.PodCIDR != b.Spec.PodCIDR ||
		!reflect.DeepEqual(a.Status.Addresses, b.Status.Addresses) ||
		a.Labels[corev1.LabelTopologyZone] != b.Labels[corev1.LabelTopologyZone]
}

// wake leaves a mark in a channel of capacity one; a mark already there is
// enough.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
