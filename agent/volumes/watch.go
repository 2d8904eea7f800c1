package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// object is one watched ConfigMap or Secret. It is the store of its own reflector.
type object struct {
	ref   ref
	users map[types.UID]bool // guarded by Objects.mu
	stop  context.CancelFunc
	// changed is called after the value changed; without locks held.
	changed func()
	synced  chan struct{} // closed at the first answer of the API server
	done    <-chan struct{}

	mu      sync.Mutex
	current runtime.Object // nil while it does not exist
	lastErr error
}

var _ cache.ReflectorStore = (*object)(nil)

// watch begins to watch an object.
func (o *Objects) watch(r ref, users map[types.UID]bool) *object {
	ctx, cancel := context.WithCancel(o.ctx)
	obj := &object{ref: r, users: users, stop: cancel, synced: make(chan struct{}), done: ctx.Done()}
	obj.changed = func() { o.changed(obj) }
	reflector := cache.NewReflectorWithOptions(o.listWatch(r), r.kind.prototype(), obj, cache.ReflectorOptions{
		Name: fmt.Sprintf("%s %s/%s", r.kind, r.namespace, r.name),
	})
	go o.keepWatching(ctx, reflector, obj)
	return obj
}

// Delays between attempts to watch an object. The Node authorizer may hear of a new pod a moment after this node does, so the
// first attempts follow closely.
const (
	minWatchDelay = 50 * time.Millisecond
	maxWatchDelay = 10 * time.Second
)

// keepWatching lists and watches an object until ctx is done, and keeps the error of the last attempt for readers who wait.
func (o *Objects) keepWatching(ctx context.Context, reflector *cache.Reflector, obj *object) {
	delay := minWatchDelay
	for ctx.Err() == nil {
		err := reflector.ListAndWatchWithContext(ctx)
		if err == nil {
			delay = minWatchDelay
		} else if ctx.Err() == nil {
			o.cfg.Log.Debug("cannot watch object", "kind", string(obj.ref.kind), "object", obj.ref.namespace+"/"+obj.ref.name, "err", err)
		}
		obj.failed(err)
		select {
		case <-ctx.Done():
		case <-time.After(wait.Jitter(delay, 0.2)):
		}
		delay = min(2*delay, maxWatchDelay)
	}
}

// listWatch lists and watches one object by name.
func (o *Objects) listWatch(r ref) cache.ListerWatcher {
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, r.name).String()
	core := o.cfg.Client.CoreV1()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = only
			if r.kind == secrets {
				return core.Secrets(r.namespace).List(ctx, options)
			}
			return core.ConfigMaps(r.namespace).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = only
			if r.kind == secrets {
				return core.Secrets(r.namespace).Watch(ctx, options)
			}
			return core.ConfigMaps(r.namespace).Watch(ctx, options)
		},
	}
	return cache.ToListWatcherWithWatchListSemantics(lw, o.cfg.Client)
}

// failed remembers how the last attempt to read the object ended.
func (obj *object) failed(err error) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	obj.lastErr = err
}

func (k kind) prototype() runtime.Object {
	if k == secrets {
		return &corev1.Secret{}
	}
	return &corev1.ConfigMap{}
}

// value returns the object, or nil if there is none.
func (obj *object) value() any {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	if obj.current == nil {
		return nil
	}
	return obj.current
}

// finished reports whether the watch has ended.
func (obj *object) finished() bool {
	select {
	case <-obj.done:
		return true
	default:
		return false
	}
}

// notSynced is the error for a reader who gave up waiting.
func (obj *object) notSynced(cause error) error {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	if obj.lastErr != nil {
		cause = obj.lastErr
	}
	return fmt.Errorf("cannot read %s %q: %w", obj.ref.kind, obj.ref.name, cause)
}

// set stores a state of the object (nil for none) and wakes those who wait for it.
func (obj *object) set(value runtime.Object) {
	obj.mu.Lock()
	first := false
	select {
	case <-obj.synced:
	default:
		first = true
	}
	changed := first || !sameVersion(obj.current, value)
	obj.current = value
	if first {
		close(obj.synced)
	}
	obj.mu.Unlock()
	if isImmutable(value) {
		obj.stop()
	}
	if changed {
		obj.changed()
	}
}

// Add implements cache.ReflectorStore, as the methods below do.
func (obj *object) Add(value any) error { return obj.Update(value) }

// Update stores a changed object.
func (obj *object) Update(value any) error {
	if o := obj.own(value); o != nil {
		obj.set(o)
	}
	return nil
}

// Delete notes that the object is gone.
func (obj *object) Delete(value any) error {
	if obj.own(value) != nil {
		obj.set(nil)
	}
	return nil
}

// Replace stores the result of a list: one object or none.
func (obj *object) Replace(values []any, _ string) error {
	var found runtime.Object
	for _, value := range values {
		if o := obj.own(value); o != nil {
			found = o
		}
	}
	obj.set(found)
	return nil
}

// Resync does nothing: there is no second consumer to repeat to.
func (obj *object) Resync() error { return nil }

// own returns value if it is the object that is watched.
func (obj *object) own(value any) runtime.Object {
	o, ok := value.(metav1.Object)
	if !ok || o.GetName() != obj.ref.name {
		return nil
	}
	return value.(runtime.Object)
}

// sameVersion reports whether two states of an object are the same write.
func sameVersion(a, b runtime.Object) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	version := a.(metav1.Object).GetResourceVersion()
	return version != "" && version == b.(metav1.Object).GetResourceVersion()
}

func isImmutable(value runtime.Object) bool {
	var immutable *bool
	switch o := value.(type) {
	case *corev1.ConfigMap:
		immutable = o.Immutable
	case *corev1.Secret:
		immutable = o.Immutable
	}
	return immutable != nil && *immutable
}
