package reconcile

import (
	"fmt"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// Change is one difference that an informer reports. Before is nil for a new
// object, After is nil for one that is gone.
type Change struct{ Before, After metav1.Object }

// Watch calls changed for every difference, and makes Run wait until the
// informer's first list has been delivered. Resyncs are not reported. An
// object replaced by another of the same name is reported as gone, then as
// new. A missed deletion is reported with the last known state.
func (l *Loop) Watch(informer cache.SharedIndexInformer, changed func(Change)) error {
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { changed(Change{After: obj.(metav1.Object)}) },
		UpdateFunc: func(before, after any) {
			b, a := before.(metav1.Object), after.(metav1.Object)
			switch {
			case b.GetUID() != a.GetUID():
				changed(Change{Before: b})
				changed(Change{After: a})
			case b.GetResourceVersion() != a.GetResourceVersion():
				changed(Change{Before: b, After: a})
			}
		},
		DeleteFunc: func(obj any) {
			if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tombstone.Obj
			}
			if gone, ok := obj.(metav1.Object); ok {
				changed(Change{Before: gone})
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch for %s: %w", l.cfg.Name, err)
	}
	l.synced = append(l.synced, registration.HasSynced)
	return nil
}

// Reads makes Run wait for an informer whose lister Reconcile uses but whose
// changes it need not hear of.
func (l *Loop) Reads(informer cache.SharedIndexInformer) {
	l.synced = append(l.synced, informer.HasSynced)
}

// WatchSelf queues every object of the informer that changes.
func (l *Loop) WatchSelf(informer cache.SharedIndexInformer) error {
	return l.Watch(informer, func(c Change) { l.Add(KeyOf(c.latest())) })
}

// WatchOwned queues the controller of every object of the informer that
// changes, if that controller is of the given kind, and the former controller
// of one that changed hands. When an object without a controller appears, or its labels change,
// orphan returns the keys of those that might want to adopt it.
func (l *Loop) WatchOwned(informer cache.SharedIndexInformer, kind string, orphan func(metav1.Object) []types.NamespacedName) error {
	return l.Watch(informer, func(c Change) {
		before, beforeOwned := controllerKey(c.Before, kind)
		after, afterOwned := controllerKey(c.After, kind)
		if beforeOwned {
			l.Add(before)
		}
		if afterOwned {
			l.Add(after)
		}
		if c.newOrphan() {
			for _, key := range orphan(c.After) {
				l.Add(key)
			}
		}
	})
}

// latest returns the object in its latest known state.
func (c Change) latest() metav1.Object {
	if c.After != nil {
		return c.After
	}
	return c.Before
}

// newOrphan reports whether the object may be adopted now and could not be,
// or not by the same owners, before.
func (c Change) newOrphan() bool {
	if c.After == nil || c.After.GetDeletionTimestamp() != nil || metav1.GetControllerOfNoCopy(c.After) != nil {
		return false
	}
	return c.Before == nil || metav1.GetControllerOfNoCopy(c.Before) != nil ||
		!maps.Equal(c.Before.GetLabels(), c.After.GetLabels())
}

func controllerKey(object metav1.Object, kind string) (types.NamespacedName, bool) {
	if object == nil {
		return types.NamespacedName{}, false
	}
	ref := metav1.GetControllerOfNoCopy(object)
	if ref == nil || ref.Kind != kind {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: object.GetNamespace(), Name: ref.Name}, true
}

// KeyOf returns the key under which object is queued.
func KeyOf(object metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}
}

// ByController finds cached objects by the controller in their metadata.
type ByController[T any] struct{ indexer cache.Indexer }

const controllerIndex = "weft.dev/controller"

// NewByController indexes the informer's objects, unless somebody did so
// before. It must be called before the informer starts.
func NewByController[T any](informer cache.SharedIndexInformer) (ByController[T], error) {
	index := ByController[T]{informer.GetIndexer()}
	if _, ok := index.indexer.GetIndexers()[controllerIndex]; ok {
		return index, nil
	}
	err := informer.AddIndexers(cache.Indexers{controllerIndex: func(obj any) ([]string, error) {
		object, ok := obj.(metav1.Object)
		if !ok {
			return nil, nil
		}
		if ref := metav1.GetControllerOfNoCopy(object); ref != nil {
			return []string{string(ref.UID)}, nil
		}
		return []string{orphansOf(object.GetNamespace())}, nil
	}})
	if err != nil {
		return index, fmt.Errorf("index by controller: %w", err)
	}
	return index, nil
}

func orphansOf(namespace string) string { return "orphans in " + namespace }

// Of returns the objects whose controller is owner.
func (b ByController[T]) Of(owner types.UID) []T { return b.find(string(owner)) }

// Orphans returns the objects in namespace that have no controller.
func (b ByController[T]) Orphans(namespace string) []T { return b.find(orphansOf(namespace)) }

func (b ByController[T]) find(value string) []T {
	// The only error is a missing index, and NewByController made it.
	found, _ := b.indexer.ByIndex(controllerIndex, value)
	objects := make([]T, 0, len(found))
	for _, object := range found {
		objects = append(objects, object.(T))
	}
	return objects
}
