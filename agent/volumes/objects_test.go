package volumes

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// cacheWorld is an Objects over an API server in memory; it counts watches and wakes.
type cacheWorld struct {
	*Objects
	t      *testing.T
	client *fake.Clientset

	mu       sync.Mutex
	watches  []string
	refusing error
	wakes    map[types.UID]int
}

func newCache(t *testing.T, objects ...runtime.Object) *cacheWorld {
	t.Helper()
	w := &cacheWorld{t: t, client: fake.NewClientset(objects...), wakes: map[types.UID]int{}}
	w.client.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.refusing != nil, nil, w.refusing
	})
	w.client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		restrictions := action.(clienttesting.WatchAction).GetWatchRestrictions()
		w.watches = append(w.watches, action.GetResource().Resource+" "+restrictions.Fields.String())
		return false, nil, nil
	})
	objectsOf, err := NewObjects(ObjectsConfig{Client: w.client, Log: slog.New(slog.DiscardHandler), Changed: func(uid types.UID) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wakes[uid]++
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.Objects = objectsOf
	return w
}

// user returns a pod that uses ConfigMap conf through envFrom.
func user(uid types.UID) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: string(uid), UID: uid},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{EnvFrom: []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}},
		}}}},
	}
}

func (w *cacheWorld) conf() string {
	cm, err := w.ConfigMap(w.t.Context(), "default", "conf")
	if err != nil {
		return err.Error()
	}
	return cm.Data["k"]
}

func (w *cacheWorld) seen() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint(w.watches)
}

func (w *cacheWorld) refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusing = err
}

// inBubble runs a test with a clock of its own and ends all watches at its end.
func inBubble(t *testing.T, test func(t *testing.T, w *cacheWorld), objects ...runtime.Object) {
	synctest.Test(t, func(t *testing.T) {
		w := newCache(t, objects...)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		test(t, w)
		cancel()
		<-done
		synctest.Wait()
	})
}

func TestPodsShareOneWatchPerObjectByName(t *testing.T) {
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.Acquire(user("a"))
		w.Acquire(user("a"))
		w.Acquire(user("b"))
		if got := w.conf(); got != "v" {
			t.Errorf("got %s", got)
		}
		synctest.Wait()
		if got := w.seen(); got != "[configmaps metadata.name=conf]" {
			t.Errorf("watches are %s", got)
		}
		w.Release("a")
		if got := w.conf(); got != "v" {
			t.Errorf("while a pod uses it: %s", got)
		}
		w.Release("b")
		w.Release("b")
		if got := w.conf(); got != `configmap "default/conf" is not used by a pod of this node` {
			t.Errorf("without users: %s", got)
		}
	}, configMap("conf", map[string]string{"k": "v"}), configMap("other", nil))
}

func TestAbsenceIsToldTruthfullyAndEndsWithTheObject(t *testing.T) {
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.Acquire(user("a"))
		if _, err := w.ConfigMap(t.Context(), "default", "conf"); !apierrors.IsNotFound(err) || err.Error() != `configmap "conf" not found` {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if _, err := w.client.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("conf", map[string]string{"k": "v"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.conf(); got != "v" {
			t.Errorf("got %s", got)
		}
		if w.wakes["a"] != 2 {
			t.Errorf("the pod was woken %d times, want at the first answer and at the change", w.wakes["a"])
		}
	})
}

func TestARefusalIsNotAbsence(t *testing.T) {
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.refuse(apierrors.NewForbidden(corev1.Resource("configmaps"), "conf", fmt.Errorf("no relationship found")))
		w.Acquire(user("a"))
		start := time.Now()
		_, err := w.ConfigMap(t.Context(), "default", "conf")
		if err == nil || apierrors.IsNotFound(err) || !apierrors.IsForbidden(err) {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(start); waited != syncTimeout {
			t.Errorf("waited %s", waited)
		}
	})
}

func TestAShortRefusalDelaysOnlyShortly(t *testing.T) {
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.refuse(apierrors.NewForbidden(corev1.Resource("configmaps"), "conf", fmt.Errorf("no relationship found")))
		w.Acquire(user("a"))
		go func() {
			time.Sleep(100 * time.Millisecond)
			w.refuse(nil)
		}()
		start := time.Now()
		if got := w.conf(); got != "v" {
			t.Errorf("got %s", got)
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("waited %s", waited)
		}
	}, configMap("conf", map[string]string{"k": "v"}))
}

func TestAReaderWhoGivesUpIsLetGo(t *testing.T) {
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.refuse(fmt.Errorf("connection refused"))
		w.Acquire(user("a"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.ConfigMap(ctx, "default", "conf")
		if err == nil || err.Error() != `cannot read configmap "conf": failed to list *v1.ConfigMap: connection refused` {
			t.Errorf("got %v", err)
		}
	})
}

func TestImmutableObjectsAreNotWatchedAndReadAnewForTheNextPod(t *testing.T) {
	fixed := configMap("conf", map[string]string{"k": "old"})
	fixed.Immutable = ptr(true)
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.Acquire(user("a"))
		if got := w.conf(); got != "old" {
			t.Errorf("got %s", got)
		}
		synctest.Wait()
		core := w.client.CoreV1().ConfigMaps("default")
		if err := core.Delete(t.Context(), "conf", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := core.Create(t.Context(), configMap("conf", map[string]string{"k": "new"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.conf(); got != "old" {
			t.Errorf("for the first pod: %s", got)
		}
		w.Acquire(user("b"))
		if got := w.conf(); got != "new" {
			t.Errorf("for the second pod: %s", got)
		}
	}, fixed)
}

func TestAcquireFollowsTheSpec(t *testing.T) {
	inBubble(t, func(t *testing.T, w *cacheWorld) {
		w.Acquire(user("a"))
		changed := user("a")
		changed.Spec.Containers = nil
		changed.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
		w.Acquire(changed)
		if s, err := w.Secret(t.Context(), "default", "pull"); err != nil || string(s.Data["k"]) != "v" {
			t.Errorf("got %v, %v", s, err)
		}
		if _, err := w.ConfigMap(t.Context(), "default", "conf"); err == nil {
			t.Error("what the pod does not use any more is still there")
		}
	}, configMap("conf", nil), secret("pull", map[string]string{"k": "v"}))
}
