// Package testcluster is an API server in memory for tests of controllers: a
// client-go fake clientset with what the fake leaves out and controllers
// depend on, that is UIDs, resourceVersions and conflicts, generations, status
// subresources, preconditions and graceful deletion. It also plays scheduler
// and node for pods.
//
// Use it inside synctest.Test; time passes only when Pass is called.
package testcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/reconcile"
)

// The fake's watchers panic when they hold this many events which nobody has
// read yet; the default, 100, is less than a ReplicaSet of one test has pods.
func init() { watch.DefaultChanSize = 10_000 }

// Cluster is an API server in memory.
type Cluster struct {
	t         *testing.T
	Client    *fake.Clientset
	Informers informers.SharedInformerFactory

	// Broken is the image of pods that never become ready.
	Broken string
	// Salt, unless 0, makes UIDs that do not grow: they decide which of several
	// equal pods goes first.
	Salt uint64

	mu        sync.Mutex
	refuse    func(kubetesting.Action) error
	lose      func(kubetesting.Action) bool
	lag       func() time.Duration
	version   int64
	deletedAt map[types.UID]string
	running   sync.WaitGroup
}

// New makes a cluster without objects.
func New(t *testing.T) *Cluster {
	t.Helper()
	// Field management, which NewClientset adds, would take most of every test's time.
	client := fake.NewSimpleClientset()
	c := &Cluster{t: t, Client: client, version: 1000, deletedAt: map[types.UID]string{}}
	c.Informers = informers.NewSharedInformerFactory(c.Client, 0)
	c.Client.PrependReactor("create", "*", c.guard(c.create))
	c.Client.PrependReactor("update", "*", c.guard(c.update))
	c.Client.PrependReactor("patch", "*", c.guard(c.patch))
	c.Client.PrependReactor("delete", "*", c.guard(c.delete))
	c.Client.PrependWatchReactor("*", c.watch)
	return c
}

// Refuse asks f before every write from now on; an error is the answer. nil
// accepts all.
func (c *Cluster) Refuse(f func(kubetesting.Action) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = f
}

// Lose asks f after every accepted write from now on; if it returns true, the
// client hears of a time-out instead. nil loses nothing.
func (c *Cluster) Lose(f func(kubetesting.Action) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose = f
}

// Lag asks f how long each event of a watch takes from now on, which makes
// caches stale. nil means no time.
func (c *Cluster) Lag(f func() time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag = f
}

// Unreliable returns another client of the same API server, for controllers
// that are to be refused what users and nodes are not. It asks refuse before
// every write that it makes; an error is the answer. It asks lose after every
// accepted one; if that returns true, the answer is a time-out instead.
func (c *Cluster) Unreliable(refuse func(kubetesting.Action) error, lose func(kubetesting.Action) bool) kubernetes.Interface {
	client := &fake.Clientset{}
	client.AddReactor("*", "*", func(action kubetesting.Action) (bool, runtime.Object, error) {
		isWrite := !slices.Contains([]string{"get", "list", "watch"}, action.GetVerb())
		if isWrite {
			if err := refuse(action); err != nil {
				return true, nil, err
			}
		}
		object, err := c.Client.Invokes(action, nil)
		if isWrite && err == nil && lose(action) {
			return true, nil, apierrors.NewTimeoutError("the answer was lost", 0)
		}
		return true, object, err
	})
	return client
}

// Env returns what a controller of that name is made from.
func (c *Cluster) Env(name string) reconcile.Env {
	return reconcile.Env{Name: name, Client: c.Client, Informers: c.Informers}
}

// Run starts the informers and the controllers, and lets them settle. They
// stop with the test.
func (c *Cluster) Run(runners ...reconcile.Runner) {
	c.t.Helper()
	for _, r := range runners {
		c.running.Go(func() {
			if err := r.Run(c.t.Context()); err != nil {
				c.t.Errorf("%s: %v", r.Name(), err)
			}
		})
	}
	c.Informers.Start(c.t.Context().Done())
	c.t.Cleanup(func() {
		c.running.Wait()
		c.Informers.Shutdown()
	})
	c.Pass(time.Second)
}

// Pass lets d pass and all that happens in it.
func (c *Cluster) Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Writes counts the accepted writes to a resource, such as "pods" or
// "replicasets/status".
func (c *Cluster) Writes(resource string) int {
	n := 0
	for _, action := range c.Client.Actions() {
		name := action.GetResource().Resource
		if action.GetSubresource() != "" {
			name += "/" + action.GetSubresource()
		}
		if verb := action.GetVerb(); name == resource && verb != "get" && verb != "list" && verb != "watch" {
			n++
		}
	}
	return n
}

type reaction = func(kubetesting.Action) (runtime.Object, error)

func (c *Cluster) guard(do reaction) kubetesting.ReactionFunc {
	return func(action kubetesting.Action) (bool, runtime.Object, error) {
		if action.GetResource().Resource == "events" && action.GetVerb() != "create" {
			return false, nil, nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.refuse != nil {
			if err := c.refuse(action); err != nil {
				return true, nil, err
			}
		}
		object, err := do(action)
		if err == nil && c.lose != nil && c.lose(action) {
			return true, nil, apierrors.NewTimeoutError("the answer was lost", 0)
		}
		return true, object, err
	}
}

func (c *Cluster) nextVersion() string {
	c.version++
	return strconv.FormatInt(c.version, 10)
}

func (c *Cluster) create(action kubetesting.Action) (runtime.Object, error) {
	object := action.(kubetesting.CreateAction).GetObject().DeepCopyObject()
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	m.SetResourceVersion(c.nextVersion())
	m.SetNamespace(action.GetNamespace())
	if m.GetName() == "" {
		m.SetName(fmt.Sprintf("%s%d", m.GetGenerateName(), c.version))
	}
	if m.GetUID() == "" {
		m.SetUID(c.newUID())
	}
	if created := m.GetCreationTimestamp(); created.IsZero() {
		m.SetCreationTimestamp(metav1.Now())
	}
	m.SetGeneration(1)
	err = c.Client.Tracker().Create(action.GetResource(), object, action.GetNamespace())
	return object, err
}

func (c *Cluster) newUID() types.UID {
	if c.Salt == 0 {
		return types.UID(fmt.Sprintf("uid-%d", c.version))
	}
	return types.UID(fmt.Sprintf("uid-%016x", rand.New(rand.NewPCG(c.Salt, uint64(c.version))).Uint64()))
}

func (c *Cluster) update(action kubetesting.Action) (runtime.Object, error) {
	object := action.(kubetesting.UpdateAction).GetObject().DeepCopyObject()
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	stored, storedMeta, err := c.stored(action, m.GetName())
	if err != nil {
		return nil, err
	}
	if v := m.GetResourceVersion(); v != "" && v != storedMeta.GetResourceVersion() {
		return nil, apierrors.NewConflict(action.GetResource().GroupResource(), m.GetName(), fmt.Errorf("have %s, got %s", storedMeta.GetResourceVersion(), v))
	}
	return c.write(action, stored, storedMeta, object)
}

func (c *Cluster) patch(action kubetesting.Action) (runtime.Object, error) {
	patch := action.(kubetesting.PatchAction)
	stored, storedMeta, err := c.stored(action, patch.GetName())
	if err != nil {
		return nil, err
	}
	var precondition struct {
		Metadata struct {
			UID             types.UID
			ResourceVersion string
		}
	}
	if err := json.Unmarshal(patch.GetPatch(), &precondition); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if uid := precondition.Metadata.UID; uid != "" && uid != storedMeta.GetUID() {
		return nil, apierrors.NewConflict(action.GetResource().GroupResource(), patch.GetName(), fmt.Errorf("uid is %s", storedMeta.GetUID()))
	}
	if v := precondition.Metadata.ResourceVersion; v != "" && v != storedMeta.GetResourceVersion() {
		return nil, apierrors.NewConflict(action.GetResource().GroupResource(), patch.GetName(), fmt.Errorf("have %s, got %s", storedMeta.GetResourceVersion(), v))
	}
	before, err := json.Marshal(stored)
	if err != nil {
		return nil, err
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch.GetPatch(), stored)
	if err != nil {
		return nil, err
	}
	object := reflect.New(reflect.TypeOf(stored).Elem()).Interface().(runtime.Object)
	if err := json.Unmarshal(after, object); err != nil {
		return nil, err
	}
	return c.write(action, stored, storedMeta, object)
}

// write stores object in place of stored, as the API server would.
func (c *Cluster) write(action kubetesting.Action, stored runtime.Object, storedMeta metav1.Object, object runtime.Object) (runtime.Object, error) {
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	m.SetUID(storedMeta.GetUID())
	m.SetCreationTimestamp(storedMeta.GetCreationTimestamp())
	m.SetDeletionTimestamp(storedMeta.GetDeletionTimestamp())
	m.SetDeletionGracePeriodSeconds(storedMeta.GetDeletionGracePeriodSeconds())
	m.SetResourceVersion(storedMeta.GetResourceVersion())
	m.SetGeneration(storedMeta.GetGeneration())
	if action.GetSubresource() != "" { // status, approval
		setField(object, stored, "Spec")
	} else {
		setField(object, stored, "Status")
		// Kinds without a spec count every change, as EndpointSlice does.
		if s := field(object, "Spec"); s == nil && !equality.Semantic.DeepEqual(object, stored) || !equality.Semantic.DeepEqual(s, field(stored, "Spec")) {
			m.SetGeneration(storedMeta.GetGeneration() + 1)
		}
	}
	if equality.Semantic.DeepEqual(object, stored) {
		return object, nil
	}
	m.SetResourceVersion(c.nextVersion())
	if m.GetDeletionTimestamp() != nil && !waitsForNode(m) && len(m.GetFinalizers()) == 0 && len(storedMeta.GetFinalizers()) > 0 {
		c.deletedAt[m.GetUID()] = m.GetResourceVersion()
		return object, c.Client.Tracker().Delete(action.GetResource(), m.GetNamespace(), m.GetName())
	}
	return object, c.Client.Tracker().Update(action.GetResource(), object, action.GetNamespace())
}

func (c *Cluster) delete(action kubetesting.Action) (runtime.Object, error) {
	deletion := action.(kubetesting.DeleteActionImpl)
	stored, m, err := c.stored(action, deletion.GetName())
	if err != nil {
		return nil, err
	}
	if p := deletion.DeleteOptions.Preconditions; p != nil && p.UID != nil && *p.UID != m.GetUID() {
		return nil, apierrors.NewConflict(action.GetResource().GroupResource(), deletion.GetName(), fmt.Errorf("uid is %s", m.GetUID()))
	}
	if p := deletion.DeleteOptions.Preconditions; p != nil && p.ResourceVersion != nil && *p.ResourceVersion != m.GetResourceVersion() {
		return nil, apierrors.NewConflict(action.GetResource().GroupResource(), deletion.GetName(), fmt.Errorf("have %s, got %s", m.GetResourceVersion(), *p.ResourceVersion))
	}
	now := deletion.DeleteOptions.GracePeriodSeconds != nil && *deletion.DeleteOptions.GracePeriodSeconds == 0
	pod, isPod := stored.(*corev1.Pod)
	graceful := isPod && pod.Spec.NodeName != "" && !now
	if !graceful && len(m.GetFinalizers()) == 0 {
		c.deletedAt[m.GetUID()] = c.nextVersion()
		return stored, c.Client.Tracker().Delete(action.GetResource(), m.GetNamespace(), m.GetName())
	}
	if m.GetDeletionTimestamp() != nil && (graceful || !waitsForNode(m)) {
		return stored, nil
	}
	grace := int64(0)
	if graceful {
		grace = gracePeriodSeconds
	}
	m.SetDeletionTimestamp(&metav1.Time{Time: time.Now().Add(time.Duration(grace) * time.Second)})
	m.SetDeletionGracePeriodSeconds(&grace)
	m.SetResourceVersion(c.nextVersion())
	return stored, c.Client.Tracker().Update(action.GetResource(), stored, action.GetNamespace())
}

// gracePeriodSeconds is what pods have to end.
const gracePeriodSeconds int64 = 30

// waitsForNode reports whether an object that is being deleted still has time
// to end: then it goes only when its node deletes it.
func waitsForNode(m metav1.Object) bool {
	grace := m.GetDeletionGracePeriodSeconds()
	return grace != nil && *grace > 0
}

// watch gives deletions a resourceVersion of their own, as the API server does.
func (c *Cluster) watch(action kubetesting.Action) (bool, watch.Interface, error) {
	w, err := c.Client.Tracker().Watch(action.GetResource(), action.GetNamespace(), action.(kubetesting.WatchActionImpl).ListOptions)
	if err != nil {
		return true, nil, err
	}
	return true, watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		c.delay()
		if e.Type != watch.Deleted {
			return e, true
		}
		e.Object = e.Object.DeepCopyObject()
		if m, err := meta.Accessor(e.Object); err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			if version, ok := c.deletedAt[m.GetUID()]; ok {
				m.SetResourceVersion(version)
			}
		}
		return e, true
	}), nil
}

func (c *Cluster) delay() {
	c.mu.Lock()
	lag := c.lag
	c.mu.Unlock()
	if lag != nil {
		time.Sleep(lag())
	}
}

func (c *Cluster) stored(action kubetesting.Action, name string) (runtime.Object, metav1.Object, error) {
	object, err := c.Client.Tracker().Get(action.GetResource(), action.GetNamespace(), name)
	if err != nil {
		return nil, nil, err
	}
	m, err := meta.Accessor(object)
	return object, m, err
}

func field(object runtime.Object, name string) any {
	f := reflect.ValueOf(object).Elem().FieldByName(name)
	if !f.IsValid() {
		return nil
	}
	return f.Interface()
}

func setField(to, from runtime.Object, name string) {
	f := reflect.ValueOf(to).Elem().FieldByName(name)
	if f.IsValid() {
		f.Set(reflect.ValueOf(from).Elem().FieldByName(name))
	}
}

// Must returns object, or fails the test. It reads well around client calls.
func Must[T any](t *testing.T) func(object T, err error) T {
	return func(object T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return object
	}
}

var background = context.Background()
