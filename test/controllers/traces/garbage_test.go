package traces

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kubetesting "k8s.io/client-go/testing"
)

// ownable is what may own others, or be owned.
type ownable struct {
	schema.GroupVersionResource
	schema.GroupVersionKind
}

func ownableOf(group, version, plural, kind string) ownable {
	return ownable{schema.GroupVersionResource{Group: group, Version: version, Resource: plural}, schema.GroupVersionKind{Group: group, Version: version, Kind: kind}}
}

// owned are the resources that are collected, owners before what they own.
var owned = []ownable{
	ownableOf("", "v1", "replicationcontrollers", "ReplicationController"),
	ownableOf("", "v1", "services", "Service"),
	ownableOf("", "v1", "endpoints", "Endpoints"),
	ownableOf("apps", "v1", "deployments", "Deployment"),
	ownableOf("apps", "v1", "statefulsets", "StatefulSet"),
	ownableOf("apps", "v1", "daemonsets", "DaemonSet"),
	ownableOf("batch", "v1", "cronjobs", "CronJob"),
	ownableOf("apps", "v1", "replicasets", "ReplicaSet"),
	ownableOf("batch", "v1", "jobs", "Job"),
	ownableOf("apps", "v1", "controllerrevisions", "ControllerRevision"),
	ownableOf("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
	ownableOf("", "v1", "pods", "Pod"),
	ownableOf("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
}

// objects returns all objects of a resource in the namespace.
func (w *world) objects(r ownable) []metav1.Object {
	list := must[runtime.Object](w.t)(w.Client.Tracker().List(r.GroupVersionResource, r.GroupVersionKind, namespace))
	var objects []metav1.Object
	_ = meta.EachListItem(list, func(item runtime.Object) error { // the only error is the function's own
		object, err := meta.Accessor(item)
		objects = append(objects, object)
		return err
	})
	return objects
}

// collectGarbage deletes what had owners and has none any more, as the garbage
// collector does.
func (w *world) collectGarbage() {
	live := map[types.UID]bool{}
	for _, r := range owned {
		for _, object := range w.objects(r) {
			isLive := func(ref metav1.OwnerReference) bool { return live[ref.UID] }
			refs := object.GetOwnerReferences()
			if len(refs) > 0 && !slices.ContainsFunc(refs, isLive) {
				_, _ = w.Client.Invokes(kubetesting.NewDeleteAction(r.GroupVersionResource, namespace, object.GetName()), nil)
			} else {
				live[object.GetUID()] = true
			}
		}
	}
}

// disown takes the owner from all that it owns, as its deletion does with the
// policy Orphan.
func (w *world) disown(owner types.UID) {
	for _, r := range owned {
		for _, object := range w.objects(r) {
			refs := object.GetOwnerReferences()
			kept := slices.DeleteFunc(slices.Clone(refs), func(ref metav1.OwnerReference) bool { return ref.UID == owner })
			if len(kept) < len(refs) {
				object.SetOwnerReferences(kept)
				object.SetResourceVersion("")
				_, _ = w.Client.Invokes(kubetesting.NewUpdateAction(r.GroupVersionResource, namespace, object.(runtime.Object)), nil)
			}
		}
	}
}
