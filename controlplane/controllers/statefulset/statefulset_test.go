package statefulset

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

func TestLifeInOrder(t *testing.T) {
	inWorld(t, func(w world) {
		history := w.history()
		w.create(web(3))
		w.Pass(time.Millisecond)
		w.expect("only the first pod is made", w.pods(), "web-0=v1")
		w.Pass(10 * time.Second)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1 web-2=v1")
		w.expect("status", w.status(), "3/3/3/3/3")
		w.expect("order", history(), "+web-0 +web-1 +web-2")
		w.scale(1)
		w.Pass(time.Second)
		w.expect("the highest ends first", w.pods(), "web-0=v1 web-1=v1 web-2=v1-")
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "web-0=v1")
		w.expect("order", history(), "+web-0 +web-1 +web-2 -web-2 -web-1")
		set := w.get()
		if set.Status.ObservedGeneration != set.Generation || set.Status.CurrentRevision != set.Status.UpdateRevision || *set.Status.CollisionCount != 0 {
			t.Errorf("generation %d, status %+v", set.Generation, set.Status)
		}
	})
}

func TestParallelMakesAndEndsAllAtOnce(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(parallel(web(20)))
		w.Pass(time.Millisecond)
		if n := strings.Count(w.pods(), "web-"); n != 20 {
			t.Errorf("%d pods are made, want 20", n)
		}
		w.Pass(100 * time.Millisecond) // for which counts may be held back
		w.expect("status", w.status(), "0/0/20/20/20")
		w.Pass(2 * time.Second)
		w.scale(2)
		w.Pass(time.Second)
		if n := strings.Count(w.pods(), "-"); n != 20+18 { // in each name, and after each that ends
			t.Errorf("%d pods end, want 18", n-20)
		}
		w.Pass(5 * time.Second)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1")
	})
}

func TestRolloutAndRollback(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(3))
		w.Pass(10 * time.Second)
		first := w.get().Status.UpdateRevision
		history := w.history()
		w.setImage("v2")
		w.Pass(time.Second)
		set := w.get()
		if set.Status.CurrentRevision != first || set.Status.UpdateRevision == first {
			t.Errorf("during the rollout: current %s, update %s, before %s", set.Status.CurrentRevision, set.Status.UpdateRevision, first)
		}
		w.Pass(time.Minute)
		w.expect("order", history(), "-web-2 +web-2 -web-1 +web-1 -web-0 +web-0")
		w.expect("pods", w.pods(), "web-0=v2 web-1=v2 web-2=v2")
		if set := w.get(); set.Status.CurrentRevision != set.Status.UpdateRevision {
			t.Errorf("current %s, update %s after the rollout", set.Status.CurrentRevision, set.Status.UpdateRevision)
		}
		w.setImage("v1") // what kubectl rollout undo does
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1 web-2=v1")
		w.expect("revision", w.get().Status.CurrentRevision, first)
		if all := w.revisions(); len(all) != 2 || all[1].Name != first || all[1].Revision != 3 {
			t.Errorf("revisions: %+v", all)
		}
	})
}

func TestCanaryStaysBehindThePartition(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(partitioned(web(3), 2))
		w.Pass(10 * time.Second)
		w.setImage("v2")
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1 web-2=v2")
		w.deletePod("web-0")
		w.deletePod("web-2")
		w.Pass(time.Minute)
		w.expect("lost pods keep their revisions", w.pods(), "web-0=v1 web-1=v1 web-2=v2")
		w.expect("status", w.status(), "3/3/2/1/3")
		w.edit(func(set *appsv1.StatefulSet) { *set.Spec.UpdateStrategy.RollingUpdate.Partition = 0 })
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "web-0=v2 web-1=v2 web-2=v2")
		w.expect("status", w.status(), "3/3/3/3/3")
	})
}

func TestBrokenUpdateStopsAtTheFirstPodAndNeedsAHand(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(3))
		w.Pass(10 * time.Second)
		w.setImage("broken")
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1 web-2=broken")
		w.setImage("v1")
		w.Pass(time.Minute)
		w.expect("the broken pod stays, as documented for OrderedReady", w.pods(), "web-0=v1 web-1=v1 web-2=broken")
		w.deletePod("web-2")
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1 web-2=v1")
	})
}

func TestParallelRolloutKeepsMaxUnavailable(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(unavailable(parallel(web(10)), "3"))
		w.Pass(10 * time.Second)
		down, most := map[string]bool{}, 0
		events := testcluster.Must[watch.Interface](t)(w.Client.CoreV1().Pods("ns").Watch(t.Context(), metav1.ListOptions{}))
		w.t.Cleanup(events.Stop)
		go func() {
			for e := range events.ResultChan() {
				pod := e.Object.(*corev1.Pod)
				down[pod.Name] = !isUp(pod) || e.Type == watch.Deleted
				n := 0
				for _, is := range down {
					if is {
						n++
					}
				}
				most = max(most, n)
			}
		}()
		w.setImage("v2")
		w.Pass(5 * time.Minute)
		if w.status() != "10/10/10/10/10" || strings.Count(w.pods(), "v2") != 10 || most != 3 {
			t.Errorf("status %s, pods %s, at most %d were down, want 3", w.status(), w.pods(), most)
		}
	})
}

func TestPodBecomesAvailableAtTheExactMoment(t *testing.T) {
	inWorld(t, func(w world) {
		set := web(2)
		set.Spec.MinReadySeconds = 30
		w.create(set)
		w.Pass(time.Second) // the first is ready now
		w.Pass(29 * time.Second)
		w.expect("status", w.status(), "0/1/1/1/1")
		w.Pass(time.Second)
		w.expect("the second is made", w.pods(), "web-0=v1 web-1=v1")
		w.Pass(100 * time.Millisecond) // for which counts may be held back
		w.expect("status", w.status(), "1/1/2/2/2")
	})
}

func TestEvictedPodIsMadeAgain(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodFailed, corev1.PodSucceeded} {
		t.Run(string(phase), func(t *testing.T) {
			inWorld(t, func(w world) {
				w.create(web(2))
				w.Pass(10 * time.Second)
				lost := w.pod("web-0")
				w.SetPhase(lost, phase)
				w.Pass(time.Minute)
				w.expect("pods", w.pods(), "web-0=v1 web-1=v1")
				if w.pod("web-0").UID == lost.UID {
					t.Error("it is the same pod")
				}
			})
		})
	}
}

func TestIdentityOfAPod(t *testing.T) {
	inWorld(t, func(w world) {
		set := withClaims(web(1), "data")
		set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
		set = w.create(set)
		w.Pass(10 * time.Second)
		pod := w.pod("web-5")
		if !metav1.IsControlledBy(pod, set) || pod.Spec.Hostname != "web-5" || pod.Spec.Subdomain != "svc" {
			t.Errorf("owners %v, hostname %s, subdomain %s", pod.OwnerReferences, pod.Spec.Hostname, pod.Spec.Subdomain)
		}
		if v := pod.Spec.Volumes; len(v) != 1 || v[0].Name != "data" || v[0].PersistentVolumeClaim.ClaimName != "data-web-5" {
			t.Errorf("volumes %+v", v)
		}
		want := fmt.Sprint(map[string]string{
			"app": "web", "apps.kubernetes.io/pod-index": "5", "statefulset.kubernetes.io/pod-name": "web-5",
			"controller-revision-hash": w.get().Status.UpdateRevision,
		})
		w.expect("labels", fmt.Sprint(pod.Labels), want)
		w.expect("claims", w.claims(), "data-web-5")
		// The label is given back.
		delete(pod.Labels, appsv1.StatefulSetPodNameLabel)
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), pod, metav1.UpdateOptions{}))
		w.Pass(time.Second)
		w.expect("labels", fmt.Sprint(w.pod("web-5").Labels), want)
	})
}

func TestOrphanIsAdoptedAndStrangerReleased(t *testing.T) {
	inWorld(t, func(w world) {
		set := w.create(web(1))
		w.Pass(10 * time.Second)
		pod := w.pod("web-0")
		pod.OwnerReferences = nil
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), pod, metav1.UpdateOptions{}))
		w.Pass(time.Second)
		if !metav1.IsControlledBy(w.pod("web-0"), set) {
			t.Error("the orphan was not adopted")
		}
		pod = w.pod("web-0")
		pod.Labels = nil
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), pod, metav1.UpdateOptions{}))
		w.Pass(time.Minute)
		if ref := metav1.GetControllerOf(w.pod("web-0")); ref != nil {
			t.Errorf("still controlled by %v", ref)
		}
		w.deletePod("web-0") // nobody's pod has the name until now
		w.Pass(7 * time.Second)
		w.expect("the name is used as soon as it is free", w.status(), "1/1/1/1/1")
	})
}

func TestClaimsFollowTheRetentionPolicy(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(retaining(withClaims(web(3), "data"), "Delete", "Delete"))
		w.Pass(10 * time.Second)
		w.expect("claims", w.claims(), "data-web-0<web data-web-1<web data-web-2<web")
		w.scale(2)
		w.Pass(time.Second)
		w.expect("the claim goes with its pod", w.claims(), "data-web-0<web data-web-1<web data-web-2<web-2")
		w.Pass(10 * time.Second)
		w.scale(3)
		w.Pass(10 * time.Second)
		w.expect("no pod gets a claim that is about to go", w.pods(), "web-0=v1 web-1=v1")
		if err := w.Client.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "data-web-2", metav1.DeleteOptions{}); err != nil { // as the garbage collector does
			t.Fatal(err)
		}
		w.Pass(10 * time.Second)
		w.expect("pods", w.pods(), "web-0=v1 web-1=v1 web-2=v1")
		w.expect("claims", w.claims(), "data-web-0<web data-web-1<web data-web-2<web")
		w.edit(func(set *appsv1.StatefulSet) { set.Spec.PersistentVolumeClaimRetentionPolicy = nil })
		w.Pass(10 * time.Second)
		w.expect("claims", w.claims(), "data-web-0 data-web-1 data-web-2")
	})
}

func TestPodIsNotMadeWithoutItsClaim(t *testing.T) {
	inWorld(t, func(w world) {
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "persistentvolumeclaims") {
				return errors.New("exceeded quota")
			}
			return nil
		})
		w.create(withClaims(web(1), "data"))
		w.Pass(time.Minute)
		w.expect("pods", w.pods(), "")
		w.Refuse(nil)
		w.Pass(5 * time.Minute)
		w.expect("pods", w.pods(), "web-0=v1")
		w.expect("claims", w.claims(), "data-web-0")
	})
}

func TestRevisionHistoryLimit(t *testing.T) {
	inWorld(t, func(w world) {
		set := web(1)
		set.Spec.RevisionHistoryLimit = new(int32(2))
		w.create(set)
		for i := range 6 {
			w.Pass(time.Minute)
			w.setImage(fmt.Sprint("v", i+2))
		}
		w.Pass(time.Minute)
		all := w.revisions()
		if len(all) != 3 || all[2].Revision != 7 || all[2].Name != w.get().Status.CurrentRevision {
			t.Errorf("%d revisions: %+v", len(all), all)
		}
	})
}

func TestRevisionBelowAPartitionIsKeptBeyondTheLimit(t *testing.T) {
	inWorld(t, func(w world) {
		set := partitioned(web(1), 1)
		set.Spec.RevisionHistoryLimit = new(int32)
		w.create(set)
		w.Pass(10 * time.Second)
		w.setImage("v2")
		w.Pass(time.Minute)
		for range 3 {
			w.deletePod("web-0")
			w.Pass(time.Minute)
			w.expect("pods", w.pods(), "web-0=v1")
		}
	})
}

func TestHashCollisionIsCountedAndAvoided(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(web(1))
		w.Pass(10 * time.Second)
		taken := w.revisions()[0].Name
		if err := w.Client.AppsV1().StatefulSets("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.deletePod("web-0")
		w.Pass(10 * time.Second)
		again := web(1) // the former set's revision still has the name
		again.UID = "another"
		w.create(again)
		w.Pass(10 * time.Second)
		set := w.get()
		if *set.Status.CollisionCount != 1 || set.Status.CurrentRevision == taken || w.status() != "1/1/1/1/1" {
			t.Errorf("status %+v", set.Status)
		}
	})
}

func TestQuietSetWritesNothing(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(retaining(withClaims(web(3), "data"), "Delete", "Delete"))
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
