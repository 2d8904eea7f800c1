package replicaset

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// world is a cluster that runs the controllers of both kinds.
type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		c, err := New(w.Env("replicaset-controller"))
		if err != nil {
			t.Fatal(err)
		}
		rc, err := NewReplication(w.Env("replication-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Nodes(time.Second, 10*time.Second)
		w.Run(c, rc)
		test(w)
	})
}

func (w world) create(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	w.t.Helper()
	return testcluster.Must[*appsv1.ReplicaSet](w.t)(w.Client.AppsV1().ReplicaSets("ns").Create(w.t.Context(), rs, metav1.CreateOptions{}))
}

func (w world) get(name string) *appsv1.ReplicaSet {
	w.t.Helper()
	return testcluster.Must[*appsv1.ReplicaSet](w.t)(w.Client.AppsV1().ReplicaSets("ns").Get(w.t.Context(), name, metav1.GetOptions{}))
}

func (w world) scale(name string, n int32) {
	w.t.Helper()
	rs := w.get(name)
	rs.Spec.Replicas = &n
	testcluster.Must[*appsv1.ReplicaSet](w.t)(w.Client.AppsV1().ReplicaSets("ns").Update(w.t.Context(), rs, metav1.UpdateOptions{}))
}

func (w world) pods() []corev1.Pod {
	w.t.Helper()
	list := testcluster.Must[*corev1.PodList](w.t)(w.Client.CoreV1().Pods("ns").List(w.t.Context(), metav1.ListOptions{}))
	return list.Items
}

func (w world) expect(name, want string) {
	w.t.Helper()
	s := w.get(name).Status
	if got := fmt.Sprintf("%d/%d/%d of %d", s.AvailableReplicas, s.ReadyReplicas, s.Replicas, len(w.pods())); got != want {
		w.t.Errorf("%s: available/ready/replicas of pods: got %s, want %s", name, got, want)
	}
}

func TestReplicaSetLife(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(replicas(20))
		w.Pass(3 * time.Second)
		w.expect("web", "20/20/20 of 20")
		w.scale("web", 5)
		w.Pass(time.Second)
		w.expect("web", "5/5/5 of 20")
		if n := *w.get("web").Status.TerminatingReplicas; n != 15 {
			t.Errorf("%d terminating, want 15", n)
		}
		w.Pass(20 * time.Second)
		w.expect("web", "5/5/5 of 5")
		if s := w.get("web"); s.Status.ObservedGeneration != s.Generation {
			t.Errorf("observed generation %d of %d", s.Status.ObservedGeneration, s.Generation)
		}
	})
}

func TestPodsAreNamedAndOwnedByTheSet(t *testing.T) {
	inWorld(t, func(w world) {
		rs := w.create(replicas(1))
		w.Pass(3 * time.Second)
		for _, p := range w.pods() {
			if !metav1.IsControlledBy(&p, rs) || p.GenerateName != "web-" {
				t.Errorf("pod %s: generateName %q, owners %v", p.Name, p.GenerateName, p.OwnerReferences)
			}
		}
	})
}

func TestLostPodIsReplaced(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(replicas(2))
		w.Pass(3 * time.Second)
		lost, failed := w.pods()[0], w.pods()[1]
		if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), lost.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.SetPhase(&failed, corev1.PodFailed)
		w.Pass(30 * time.Second)
		w.expect("web", "2/2/2 of 3") // the failed pod stays for its logs
	})
}

func TestPodBecomesAvailableAtTheExactMoment(t *testing.T) {
	inWorld(t, func(w world) {
		rs := replicas(1)
		rs.Spec.MinReadySeconds = 30
		w.create(rs)
		w.Pass(time.Second) // ready now
		w.Pass(29 * time.Second)
		w.expect("web", "0/1/1 of 1")
		w.Pass(time.Second)
		w.expect("web", "1/1/1 of 1")
	})
}

func TestQuotaStopsTheFirstBatchAndIsReported(t *testing.T) {
	inWorld(t, func(w world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "pods") {
				attempts++
				return apierrors.NewForbidden(corev1.Resource("pods"), "", fmt.Errorf("exceeded quota: q"))
			}
			return nil
		})
		w.create(replicas(100))
		w.Pass(time.Millisecond)
		if attempts > 2 { // the second follows from the condition being written
			t.Errorf("%d attempts at once, want at most 2", attempts)
		}
		conditions := w.get("web").Status.Conditions
		if len(conditions) != 1 || conditions[0].Type != appsv1.ReplicaSetReplicaFailure || conditions[0].Reason != "FailedCreate" {
			t.Fatalf("conditions: %+v", conditions)
		}
		w.Refuse(nil)
		w.Pass(10 * time.Minute)
		w.expect("web", "100/100/100 of 100")
		if c := w.get("web").Status.Conditions; len(c) != 0 {
			t.Errorf("conditions after the quota was raised: %+v", c)
		}
	})
}

func TestOrphanIsAdoptedAndReleasedWithItsLabels(t *testing.T) {
	inWorld(t, func(w world) {
		orphan := pod("orphan")
		orphan.UID, orphan.Status = "", corev1.PodStatus{}
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Create(t.Context(), orphan, metav1.CreateOptions{}))
		w.Pass(0) // or the set may be seen first, and make a pod that ends again
		rs := w.create(replicas(1))
		w.Pass(3 * time.Second)
		w.expect("web", "1/1/1 of 1")
		got := w.pods()[0]
		if !metav1.IsControlledBy(&got, rs) {
			t.Fatalf("not adopted: %v", got.OwnerReferences)
		}
		got.Labels = map[string]string{"app": "debug"}
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Update(t.Context(), &got, metav1.UpdateOptions{}))
		w.Pass(3 * time.Second)
		w.expect("web", "1/1/1 of 2")
		freed := testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Get(t.Context(), "orphan", metav1.GetOptions{}))
		if len(freed.OwnerReferences) != 0 {
			t.Errorf("not released: %v", freed.OwnerReferences)
		}
	})
}

func TestForeignPodsAreNotTouched(t *testing.T) {
	inWorld(t, func(w world) {
		foreign := pod("foreign")
		foreign.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Other", Name: "o", UID: "o", Controller: new(true)}}
		testcluster.Must[*corev1.Pod](t)(w.Client.CoreV1().Pods("ns").Create(t.Context(), foreign, metav1.CreateOptions{}))
		w.create(replicas(0))
		w.Pass(3 * time.Second)
		w.expect("web", "0/0/0 of 1")
	})
}

func TestNothingIsCreatedTwiceAndNoStatusIsWrittenInVain(t *testing.T) {
	inWorld(t, func(w world) {
		w.create(replicas(50))
		w.Pass(10 * time.Second)
		w.expect("web", "50/50/50 of 50")
		before := w.Writes("replicasets/status")
		w.Pass(time.Hour)
		if n := w.Writes("replicasets/status") - before; n != 0 {
			t.Errorf("%d status writes while nothing happened", n)
		}
	})
}

func TestNamespaceThatTerminatesGetsNoPods(t *testing.T) {
	inWorld(t, func(w world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if !a.Matches("create", "pods") {
				return nil
			}
			attempts++
			err := apierrors.NewForbidden(corev1.Resource("pods"), "", fmt.Errorf("namespace is being terminated"))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
			return err
		})
		w.create(replicas(3))
		w.Pass(time.Hour)
		if c := w.get("web").Status.Conditions; attempts > 2 || len(c) != 0 {
			t.Errorf("%d attempts, conditions %+v", attempts, c)
		}
	})
}

func TestReplicationControllerIsTheSame(t *testing.T) {
	inWorld(t, func(w world) {
		rc := &corev1.ReplicationController{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "old"},
			Spec: corev1.ReplicationControllerSpec{
				Replicas: new(int32(3)),
				Selector: map[string]string{"app": "old"},
				Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "old"}}},
			},
		}
		controllers := w.Client.CoreV1().ReplicationControllers("ns")
		testcluster.Must[*corev1.ReplicationController](t)(controllers.Create(t.Context(), rc, metav1.CreateOptions{}))
		w.Pass(5 * time.Second)
		rc = testcluster.Must[*corev1.ReplicationController](t)(controllers.Get(t.Context(), "old", metav1.GetOptions{}))
		if rc.Status.AvailableReplicas != 3 || rc.Status.ObservedGeneration != 1 {
			t.Errorf("status %+v", rc.Status)
		}
		for _, p := range w.pods() {
			if ref := metav1.GetControllerOf(&p); ref == nil || ref.Kind != "ReplicationController" || ref.UID != types.UID(rc.UID) {
				t.Errorf("%s is controlled by %v", p.Name, ref)
			}
		}
		before := w.Writes("replicationcontrollers/status")
		w.Pass(time.Hour)
		if n := w.Writes("replicationcontrollers/status") - before; n != 0 {
			t.Errorf("%d status writes while nothing happened", n)
		}
	})
}
