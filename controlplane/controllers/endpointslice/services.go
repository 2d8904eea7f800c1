package endpointslice

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/endpointslice/util"

	"weft.dev/weft/controlplane/reconcile"
)

// ServicesOf returns the keys of the Services that select the changed pod, or
// did, if anything that endpoints show has changed.
func ServicesOf(services corelisters.ServiceLister, change reconcile.Change) []types.NamespacedName {
	projections := []*util.PodProjectionKey{util.GetPodUpdateProjectionKey(orNil(change.Before), orNil(change.After))}
	if hasEnded(change) { // which the library overlooks in a pod that was not ready
		projections = append(projections, util.GetPodUpdateProjectionKey(nil, change.After))
	}
	var keys []types.NamespacedName
	for _, projection := range projections {
		names, _ := util.GetServicesToUpdate(services, projection) // reads a cache: no error
		for key := range names {
			namespace, name, _ := strings.Cut(key, "/")
			keys = append(keys, types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
	return keys
}

// hasEnded reports whether the pod's last container has ended with this change.
func hasEnded(change reconcile.Change) bool {
	before, _ := change.Before.(*corev1.Pod)
	after, _ := change.After.(*corev1.Pod)
	return before != nil && after != nil && reconcile.IsFinished(after) && !reconcile.IsFinished(before)
}

// orNil keeps a missing object from becoming a non-nil interface of another type.
func orNil(object metav1.Object) any {
	if object == nil {
		return nil
	}
	return object
}
