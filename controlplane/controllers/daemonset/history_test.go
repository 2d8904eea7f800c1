package daemonset

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

func TestHistoryIsKeptWithinItsLimit(t *testing.T) {
	inWorld(t, 1, func(w world) {
		w.create(with(func(ds *appsv1.DaemonSet) { ds.Spec.RevisionHistoryLimit = new(int32(2)) }))
		for i := range 5 {
			w.Pass(10 * time.Second)
			w.edit(image(fmt.Sprint("w", i)))
		}
		w.Pass(10 * time.Second)
		var numbers []int64
		for _, r := range w.revisions() {
			numbers = append(numbers, r.Revision)
		}
		if !slices.Equal(numbers, []int64{4, 5, 6}) {
			t.Errorf("revisions %v, want the present one and two old ones", numbers)
		}
	})
}

func TestLostRevisionIsMadeAgainWithoutRestarts(t *testing.T) {
	inWorld(t, 1, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		pod, lost := w.pods()[0], w.revisions()[0]
		if err := w.Client.AppsV1().ControllerRevisions("ns").Delete(t.Context(), lost.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.Pass(time.Minute)
		if r := w.revisions(); len(r) != 1 || r[0].Name != lost.Name || r[0].UID == lost.UID {
			t.Errorf("revisions %v, want %s anew", r, lost.Name)
		}
		if got := w.pods(); len(got) != 1 || got[0].UID != pod.UID {
			t.Errorf("%s was replaced", pod.Name)
		}
	})
}

func TestCollisionOfHashesIsSolved(t *testing.T) {
	inWorld(t, 1, func(w world) {
		foreign := historyOf(agent(), nil).Current
		foreign.OwnerReferences, foreign.Labels = nil, nil
		foreign.Data.Raw = []byte(`{"spec":{}}`)
		testcluster.Must[*appsv1.ControllerRevision](t)(w.Client.AppsV1().ControllerRevisions("ns").Create(t.Context(), foreign, metav1.CreateOptions{}))
		w.create(agent())
		w.Pass(3 * time.Second)
		w.expect("n0 v1")
		if got := w.get().Status.CollisionCount; got == nil || *got != 1 {
			t.Errorf("collision count %v", got)
		}
	})
}

func TestOrphansAreAdoptedWithTheirHistory(t *testing.T) {
	inWorld(t, 2, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		// kubectl delete --cascade=orphan, with the garbage collector's part.
		if err := w.Client.AppsV1().DaemonSets("ns").Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, p := range w.pods() {
			p.OwnerReferences = nil
			testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), &p, metav1.UpdateOptions{}))
		}
		for _, r := range w.revisions() {
			r.OwnerReferences = nil
			testcluster.Must[*appsv1.ControllerRevision](t)(w.Client.AppsV1().ControllerRevisions("ns").Update(t.Context(), &r, metav1.UpdateOptions{}))
		}
		before := w.pods()
		ds := w.create(agent())
		w.Pass(10 * time.Second)
		after := w.pods()
		for i, p := range after {
			if p.Name != before[i].Name || !metav1.IsControlledBy(&p, ds) {
				t.Errorf("%s became %s of %v", before[i].Name, p.Name, p.OwnerReferences)
			}
		}
		if r := w.revisions(); len(r) != 1 || !metav1.IsControlledBy(&r[0], ds) {
			t.Errorf("revisions %v", r)
		}

		after[0].Labels["app"] = "debug"
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), &after[0], metav1.UpdateOptions{}))
		w.Pass(3 * time.Second)
		w.expect("n0 v1", "n0 v1", "n1 v1")
		freed := testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Get(t.Context(), after[0].Name, metav1.GetOptions{}))
		if len(freed.OwnerReferences) != 0 {
			t.Errorf("not released: %v", freed.OwnerReferences)
		}
	})
}
