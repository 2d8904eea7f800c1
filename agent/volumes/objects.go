package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// syncTimeout bounds how long a reader waits for the first answer of the API server about an object.
const syncTimeout = 10 * time.Second

// kind tells ConfigMaps and Secrets apart. Its text is how kubelet names them in messages.
type kind string

const (
	configMaps kind = "configmap"
	secrets    kind = "secret"
)

// ref names one ConfigMap or Secret.
type ref struct {
	kind            kind
	namespace, name string
}

// ObjectsConfig is what Objects needs.
type ObjectsConfig struct {
	Client kubernetes.Interface
	// Changed is called after a ConfigMap or Secret that a pod on this node uses was seen for the first time, changed or vanished.
	// It lets a pod that waits for the object try again at once. It must not block. Nil is allowed.
	Changed func(podUID types.UID)
	Log     *slog.Logger
}

// Objects is this node's view of the ConfigMaps, Secrets and trust bundles that its pods use. The Node authorizer lets a node read those, one by
// one by name, and nothing else, so there is one watch per object (fieldSelector metadata.name), shared by all pods that use it
// and ended with the last of them. Immutable objects are read once and not watched. Its methods may be called concurrently.
type Objects struct {
	cfg  ObjectsConfig
	ctx  context.Context // ends every watch
	stop context.CancelFunc

	mu        sync.Mutex
	objects   map[ref]*object
	pods      map[types.UID][]ref
	listeners []func(types.UID)

	trust trustBundles
}

// NewObjects validates cfg and returns an Objects that watches nothing yet.
func NewObjects(cfg ObjectsConfig) (*Objects, error) {
	if cfg.Client == nil {
		return nil, errors.New("volumes: Client is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	o := &Objects{cfg: cfg, objects: map[ref]*object{}, pods: map[types.UID][]ref{}}
	o.ctx, o.stop = context.WithCancel(context.Background())
	o.trust = trustBundles{client: cfg.Client, tell: o.tell, users: map[types.UID]bool{}}
	if cfg.Changed != nil {
		o.listeners = append(o.listeners, cfg.Changed)
	}
	return o, nil
}

// Run ends all watches when ctx is done. Readers that came before Run are served, too.
func (o *Objects) Run(ctx context.Context) error {
	<-ctx.Done()
	o.stop()
	return nil
}

// Acquire makes the objects that pod refers to available until Release: those of its volumes, environment and image pull secrets.
// It is idempotent; for a pod whose spec changed it adds what is new and drops what is not used any more.
func (o *Objects) Acquire(pod *corev1.Pod) {
	o.trust.acquire(o.ctx, pod)
	wanted := refsOf(pod)
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.pods[pod.UID]
	o.pods[pod.UID] = wanted
	for _, r := range wanted {
		if !slices.Contains(before, r) {
			o.use(r, pod.UID)
		}
	}
	for _, r := range before {
		if !slices.Contains(wanted, r) {
			o.drop(r, pod.UID)
		}
	}
}

// Release ends what Acquire began. It is idempotent.
func (o *Objects) Release(podUID types.UID) {
	o.trust.release(podUID)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.pods[podUID] {
		o.drop(r, podUID)
	}
	delete(o.pods, podUID)
}

// ConfigMap returns a ConfigMap that an acquired pod refers to. It waits for the first answer of the API server, until ctx is
// done or 10 s have passed. The error satisfies apierrors.IsNotFound if and only if the API server says so.
func (o *Objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	value, err := o.get(ctx, ref{configMaps, namespace, name})
	if err != nil {
		return nil, err
	}
	return value.(*corev1.ConfigMap), nil
}

// Secret returns a Secret that an acquired pod refers to, as ConfigMap does.
func (o *Objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	value, err := o.get(ctx, ref{secrets, namespace, name})
	if err != nil {
		return nil, err
	}
	return value.(*corev1.Secret), nil
}

// listen adds a function to be called like ObjectsConfig.Changed.
func (o *Objects) listen(changed func(types.UID)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.listeners = append(o.listeners, changed)
}

func (o *Objects) use(r ref, podUID types.UID) {
	obj, ok := o.objects[r]
	if !ok || obj.finished() {
		// A finished watch is that of an immutable object, which may have been replaced by another of the same name since.
		users := map[types.UID]bool{}
		if ok {
			users = obj.users
		}
		obj = o.watch(r, users)
		o.objects[r] = obj
	}
	obj.users[podUID] = true
}

func (o *Objects) drop(r ref, podUID types.UID) {
	obj := o.objects[r]
	delete(obj.users, podUID)
	if len(obj.users) == 0 {
		obj.stop()
		delete(o.objects, r)
	}
}

func (o *Objects) get(ctx context.Context, r ref) (any, error) {
	o.mu.Lock()
	obj, ok := o.objects[r]
	o.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s %q is not used by a pod of this node", r.kind, r.namespace+"/"+r.name)
	}
	timer := time.NewTimer(syncTimeout)
	defer timer.Stop()
	select {
	case <-obj.synced:
	case <-ctx.Done():
		return nil, obj.notSynced(ctx.Err())
	case <-timer.C:
		return nil, obj.notSynced(context.DeadlineExceeded)
	}
	value := obj.value()
	if value == nil {
		return nil, apierrors.NewNotFound(corev1.Resource(string(r.kind)), r.name)
	}
	return value, nil
}

// changed tells every listener about the users of an object.
func (o *Objects) changed(obj *object) {
	o.mu.Lock()
	users := slices.Collect(maps.Keys(obj.users))
	o.mu.Unlock()
	for _, uid := range users {
		o.tell(uid)
	}
}

// tell calls every listener for a pod.
func (o *Objects) tell(podUID types.UID) {
	o.mu.Lock()
	listeners := slices.Clone(o.listeners)
	o.mu.Unlock()
	for _, listener := range listeners {
		listener(podUID)
	}
}

// refsOf lists the ConfigMaps and Secrets that a pod's spec refers to, each once.
func refsOf(pod *corev1.Pod) []ref {
	var refs []ref
	collect := func(k kind) podutil.Visitor {
		return func(name string) bool {
			r := ref{k, pod.Namespace, name}
			if !slices.Contains(refs, r) {
				refs = append(refs, r)
			}
			return true
		}
	}
	podutil.VisitPodConfigmapNames(pod, collect(configMaps))
	podutil.VisitPodSecretNames(pod, collect(secrets))
	return refs
}
