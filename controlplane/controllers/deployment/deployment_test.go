package deployment

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/replicaset"
	"weft.dev/weft/controlplane/controllers/testcluster"
	"weft.dev/weft/controlplane/reconcile"
)

// world is a cluster with Deployments, ReplicaSets and a node. Pods are ready
// after a second unless their image is "broken", and take five seconds to end.
type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		d, err := New(w.Env("deployment-controller"))
		if err != nil {
			t.Fatal(err)
		}
		rs, err := replicaset.New(w.Env("replicaset-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Broken = "broken"
		w.Nodes(time.Second, 5*time.Second)
		w.Run(d, rs)
		test(w)
	})
}

func (w world) create(d *appsv1.Deployment) {
	w.t.Helper()
	testcluster.Must[*appsv1.Deployment](w.t)(w.Client.AppsV1().Deployments("ns").Create(w.t.Context(), d, metav1.CreateOptions{}))
	w.Pass(10 * time.Second)
}

func (w world) get() *appsv1.Deployment {
	w.t.Helper()
	return testcluster.Must[*appsv1.Deployment](w.t)(w.Client.AppsV1().Deployments("ns").Get(w.t.Context(), "web", metav1.GetOptions{}))
}

func (w world) edit(change func(*appsv1.Deployment)) {
	w.t.Helper()
	d := w.get()
	change(d)
	testcluster.Must[*appsv1.Deployment](w.t)(w.Client.AppsV1().Deployments("ns").Update(w.t.Context(), d, metav1.UpdateOptions{}))
}

func (w world) setImage(image string) {
	w.t.Helper()
	w.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
}

// sets describes each set as "image@revision size".
func (w world) sets() string {
	w.t.Helper()
	list := testcluster.Must[*appsv1.ReplicaSetList](w.t)(w.Client.AppsV1().ReplicaSets("ns").List(w.t.Context(), metav1.ListOptions{}))
	var words []string
	for _, set := range list.Items {
		words = append(words, fmt.Sprintf("%s@%s %d", set.Spec.Template.Spec.Containers[0].Image, set.Annotations[annotationRevision], *set.Spec.Replicas))
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

func (w world) progress() string {
	w.t.Helper()
	c := find(w.get().Status.Conditions, appsv1.DeploymentProgressing)
	if c == nil {
		return "unknown"
	}
	return c.Reason
}

func (w world) expect(sets, progress string) {
	w.t.Helper()
	if got := w.sets(); got != sets {
		w.t.Errorf("sets %q, want %q", got, sets)
	}
	if got := w.progress(); got != progress {
		w.t.Errorf("progress is %s, want %s", got, progress)
	}
}

// watch checks after every change of a pod how many there are that do not end,
// and how many of those are ready.
func (w world) watch(most, least int) {
	w.t.Helper()
	pods := w.Client.CoreV1().Pods("ns")
	alive := map[string]bool{} // ready
	note := func(pod *corev1.Pod) {
		if pod.DeletionTimestamp != nil {
			delete(alive, pod.Name)
		} else {
			alive[pod.Name] = reconcile.IsReady(pod)
		}
	}
	for _, pod := range testcluster.Must[*corev1.PodList](w.t)(pods.List(w.t.Context(), metav1.ListOptions{})).Items {
		note(&pod)
	}
	events := testcluster.Must[watch.Interface](w.t)(pods.Watch(w.t.Context(), metav1.ListOptions{}))
	w.t.Cleanup(events.Stop)
	go func() {
		for e := range events.ResultChan() {
			note(e.Object.(*corev1.Pod))
			ready := 0
			for _, isReady := range alive {
				if isReady {
					ready++
				}
			}
			if len(alive) > most || ready < least {
				w.t.Errorf("%d pods, %d of them ready; allowed are at most %d and at least %d", len(alive), ready, most, least)
			}
		}
	}()
}

func TestRolloutAndRollback(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(10, "25%", "25%"))
		w.expect("new@1 10", reasonSetAvailable)
		w.watch(13, 8)
		w.setImage("v2")
		w.Pass(time.Minute)
		w.expect("new@1 0, v2@2 10", reasonSetAvailable)
		w.setImage("new") // what kubectl rollout undo does
		w.Pass(time.Minute)
		w.expect("new@3 10, v2@2 0", reasonSetAvailable)
		d := w.get()
		if d.Annotations[annotationRevision] != "3" || d.Status.ObservedGeneration != d.Generation || d.Status.AvailableReplicas != 10 {
			t.Errorf("revision %s, status %+v", d.Annotations[annotationRevision], d.Status)
		}
	})
}

func TestBrokenTemplateLeavesOldPodsAndMissesTheDeadline(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(4, "1", "1"))
		w.setImage("broken")
		w.Pass(time.Minute)
		w.expect("broken@2 2, new@1 3", reasonSetUpdated)
		w.Pass(10 * time.Minute)
		w.expect("broken@2 2, new@1 3", reasonTimedOut)
		w.setImage("v3")
		w.Pass(time.Minute)
		w.expect("broken@2 0, new@1 0, v3@3 4", reasonSetAvailable)
	})
}

func TestScaleDuringRolloutKeepsProportions(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(10, "5", "0"))
		w.setImage("broken")
		w.Pass(time.Minute)
		w.expect("broken@2 5, new@1 10", reasonSetUpdated)
		w.edit(func(d *appsv1.Deployment) { *d.Spec.Replicas = 20 })
		w.Pass(time.Minute)
		w.expect("broken@2 8, new@1 17", reasonSetUpdated)
	})
}

func TestPauseAndResume(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(4, "1", "0"))
		w.edit(func(d *appsv1.Deployment) {
			d.Spec.Paused = true
			d.Spec.Template.Spec.Containers[0].Image = "v2"
		})
		w.Pass(time.Hour) // much longer than the deadline
		w.expect("new@1 4", reasonPaused)
		w.edit(func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.Pass(time.Minute)
		w.expect("new@1 0, v2@2 4", reasonSetAvailable)
	})
}

func TestRecreateNeverRunsTwoTemplatesAtOnce(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(recreate(3))
		w.setImage("v2")
		w.Pass(4 * time.Second) // the old pods are ending
		w.expect("new@1 0", reasonSetAvailable)
		w.Pass(time.Minute)
		w.expect("new@1 0, v2@2 3", reasonSetAvailable)
	})
}

func TestCompleteRolloutNamesItsSet(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(recreate(3))
		message := func() string { return find(w.get().Status.Conditions, appsv1.DeploymentProgressing).Message }
		first := message()
		w.setImage("v2")
		w.Pass(time.Minute)
		w.expect("new@1 0, v2@2 3", reasonSetAvailable)
		if second := message(); second == first {
			t.Errorf("after a second rollout: %s", second)
		}
	})
}

func TestHashCollisionIsCountedAndAvoided(t *testing.T) {
	inWorld(t, func(w world) {
		d := web(1, "1", "0")
		taken := decide(d, nil, nil, now).Create.DeepCopy()
		taken.OwnerReferences = nil
		taken.Spec.Template.Spec.Containers[0].Image = "another"
		taken.Labels = map[string]string{"app": "other"}
		testcluster.Must[*appsv1.ReplicaSet](t)(w.Client.AppsV1().ReplicaSets("ns").Create(t.Context(), taken, metav1.CreateOptions{}))
		w.create(d)
		w.expect("another@1 1, new@1 1", reasonSetAvailable)
		if n := w.get().Status.CollisionCount; n == nil || *n != 1 {
			t.Errorf("collision count %v", n)
		}
	})
}

func TestSetThatCannotBeCreatedIsReported(t *testing.T) {
	inWorld(t, func(w world) {
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "replicasets") {
				return errors.New("quota")
			}
			return nil
		})
		w.create(web(1, "1", "0"))
		w.expect("", reasonSetCreateError)
		w.Refuse(nil)
		w.Pass(5 * time.Minute)
		w.expect("new@1 1", reasonSetAvailable)
	})
}

func TestQuietDeploymentWritesNothing(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(10, "25%", "25%"))
		w.setImage("v2")
		w.Pass(time.Minute)
		before := len(w.Client.Actions())
		w.Pass(24 * time.Hour)
		for _, a := range w.Client.Actions()[before:] {
			if a.GetVerb() != "watch" && a.GetVerb() != "list" {
				t.Errorf("%s %s", a.GetVerb(), a.GetResource().Resource)
			}
		}
	})
}
