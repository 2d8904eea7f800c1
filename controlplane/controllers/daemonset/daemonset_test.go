package daemonset

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

func TestNodesComeAndGo(t *testing.T) {
	inWorld(t, 2, func(w world) {
		w.create(with(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "ssd"} }))
		w.Pass(3 * time.Second)
		w.expect()
		w.expectStatus("0/0/0 of 0")

		w.editNode("n0", func(n *corev1.Node) { labelled(n, "disk", "ssd") })
		w.addNode(labelled(machine("n9"), "disk", "ssd"))
		w.Pass(3 * time.Second)
		w.expect("n0 v1", "n9 v1")
		w.expectStatus("2/2/2 of 2")

		w.editNode("n0", func(n *corev1.Node) { labelled(n, "disk", "hdd") })
		w.removeNode("n9")
		w.Pass(time.Second)
		w.expect("n0 v1 terminating", "n9 v1")
		w.expectStatus("0/0/0 of 0, 1 misscheduled")
		w.Pass(3 * time.Second)
		w.expect("n9 v1") // for the pod garbage collector, which does not run here
		w.expectStatus("0/0/0 of 0")
		if got := w.eventReasons(); got != "SuccessfulCreate SuccessfulDelete" {
			t.Errorf("events %s", got)
		}
	})
}

func TestTaintsOfANodeThatFails(t *testing.T) {
	inWorld(t, 2, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		notReady := func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule), taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)}
		}
		w.editNode("n0", notReady)
		w.Pass(3 * time.Second)
		w.expect("n0 v1", "n1 v1")
		w.expectStatus("1/1/1 of 1, 1 misscheduled")

		w.editNode("n0", func(n *corev1.Node) { n.Spec.Taints = nil })
		w.Pass(3 * time.Second)
		w.expectStatus("2/2/2 of 2")

		w.editNode("n1", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{taint("k", corev1.TaintEffectNoExecute)} })
		w.Pass(5 * time.Second)
		w.expect("n0 v1")
		w.expectStatus("1/1/1 of 1")
	})
}

func TestRollingUpdateAndRollback(t *testing.T) {
	inWorld(t, 2, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		w.edit(image("v2"))
		w.Pass(time.Second)
		w.expect("n0 v1 terminating", "n1 v1")
		w.Pass(1500 * time.Millisecond)
		w.expect("n0 v2 starting", "n1 v1")
		w.Pass(time.Second)
		w.expect("n0 v2", "n1 v1 terminating")
		w.Pass(5 * time.Second)
		w.expect("n0 v2", "n1 v2")
		w.expectStatus("2/2/2 of 2")

		// kubectl rollout undo sends the data of the former revision.
		undo := w.revisions()[0]
		testcluster.Must[*appsv1.DaemonSet](t)(w.Client.AppsV1().DaemonSets("ns").Patch(t.Context(), "agent",
			"application/strategic-merge-patch+json", undo.Data.Raw, metav1.PatchOptions{}))
		w.Pass(time.Minute)
		w.expect("n0 v1", "n1 v1")
		kept := w.revisions()
		if len(kept) != 2 || kept[1].Name != undo.Name || kept[1].Revision != 3 {
			t.Errorf("revisions after the rollback: %v", kept)
		}
		for _, p := range w.pods() {
			if hash := p.Labels["controller-revision-hash"]; hash != undo.Labels["controller-revision-hash"] {
				t.Errorf("%s has hash %s", p.Name, hash)
			}
		}
	})
}

func TestRollbackOfABadUpdateRestartsOnlyWhatWasReplaced(t *testing.T) {
	inWorld(t, 3, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		kept := map[string]bool{}
		w.edit(image("broken"))
		w.Pass(time.Minute)
		w.expect("n0 broken starting", "n1 v1", "n2 v1")
		for _, p := range w.pods() {
			kept[p.Name] = true
		}
		w.edit(image("v1"))
		w.Pass(time.Minute)
		w.expect("n0 v1", "n1 v1", "n2 v1")
		survivors := 0
		for _, p := range w.pods() {
			if kept[p.Name] {
				survivors++
			}
		}
		if survivors != 2 {
			t.Errorf("%d pods survived, want 2", survivors)
		}
	})
}

func TestSurgingUpdateKeepsEveryNodeServed(t *testing.T) {
	inWorld(t, 2, func(w world) {
		w.create(with(strategy(rolling("1", "0"))))
		w.Pass(3 * time.Second)
		w.edit(image("v2"))
		w.Pass(time.Second / 2)
		w.expect("n0 v1", "n0 v2 starting", "n1 v1")
		w.Pass(time.Second / 2)
		w.expect("n0 v1 terminating", "n0 v2", "n1 v1", "n1 v2 starting")
		w.Pass(5 * time.Second)
		w.expect("n0 v2", "n1 v2")
		w.expectStatus("2/2/2 of 2")
	})
}

func TestOnDeleteLeavesPodsToTheUser(t *testing.T) {
	inWorld(t, 2, func(w world) {
		w.create(with(strategy(onDelete())))
		w.Pass(3 * time.Second)
		w.edit(image("v2"))
		w.Pass(time.Minute)
		w.expect("n0 v1", "n1 v1")
		w.expectStatus("2/0/2 of 2")
		for _, p := range w.pods() {
			if targetNode(&p) == "n1" {
				if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.Pass(5 * time.Second)
		w.expect("n0 v1", "n1 v2")
		w.expectStatus("2/1/2 of 2")
	})
}

func TestFailedPodIsReplacedWithBackoff(t *testing.T) {
	inWorld(t, 1, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		replaced := time.Now()
		for i, wait := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second} {
			failed := w.pods()[0]
			w.SetPhase(&failed, corev1.PodFailed)
			if wait > 0 {
				w.Pass(time.Until(replaced.Add(wait - time.Millisecond)))
				if n := len(w.pods()); n != 1 {
					t.Errorf("failure %d: replaced before %v had passed", i, wait)
				}
				w.Pass(time.Millisecond)
			}
			w.Pass(0)
			if n := len(w.pods()); n != 2 { // the failed one takes its time to go
				t.Fatalf("failure %d: %d pods after %v", i, n, wait)
			}
			replaced = time.Now()
			if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), failed.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
				t.Fatal(err)
			}
			w.Pass(10 * time.Millisecond)
		}
		if got := w.eventReasons(); got != "FailedDaemonPod SuccessfulCreate SuccessfulDelete" {
			t.Errorf("events %s", got)
		}
	})
}

func TestSucceededPodIsReplaced(t *testing.T) {
	inWorld(t, 1, func(w world) {
		w.create(agent())
		w.Pass(3 * time.Second)
		p := w.pods()[0]
		w.SetPhase(&p, corev1.PodSucceeded)
		w.Pass(10 * time.Second)
		w.expect("n0 v1")
		if w.pods()[0].Name == p.Name || !strings.Contains(w.eventReasons(), "SucceededDaemonPod") {
			t.Errorf("not replaced, events %s", w.eventReasons())
		}
	})
}

func TestPodBecomesAvailableAtTheExactMoment(t *testing.T) {
	inWorld(t, 1, func(w world) {
		w.create(with(minReady(30)))
		w.Pass(time.Second) // ready now
		w.Pass(29 * time.Second)
		w.expectStatus("0/1/1 of 1")
		w.Pass(time.Second)
		w.expectStatus("1/1/1 of 1")
	})
}

func TestNothingIsMadeTwiceAndNothingIsWrittenInVain(t *testing.T) {
	inWorld(t, 40, func(w world) {
		w.create(agent())
		w.Pass(5 * time.Second)
		w.expectStatus("40/40/40 of 40")
		if n := len(w.pods()); n != 40 {
			t.Errorf("%d pods", n)
		}
		before := len(w.Client.Actions())
		w.Pass(time.Hour)
		if n := len(w.Client.Actions()) - before; n != 0 {
			t.Errorf("%d API calls while nothing happened", n)
		}
	})
}

func TestQuotaStopsTheFirstBatch(t *testing.T) {
	inWorld(t, 40, func(w world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if a.Matches("create", "pods") {
				attempts++
				return apierrors.NewForbidden(corev1.Resource("pods"), "", fmt.Errorf("exceeded quota: q"))
			}
			return nil
		})
		w.create(agent())
		w.Pass(time.Millisecond)
		if attempts > 2 { // the second follows from the status being written
			t.Errorf("%d attempts at once, want at most 2", attempts)
		}
		w.expectStatus("0/0/0 of 40")
		w.Refuse(nil)
		w.Pass(10 * time.Minute)
		w.expectStatus("40/40/40 of 40")
		if !strings.Contains(w.eventReasons(), "FailedCreate") {
			t.Errorf("events %s", w.eventReasons())
		}
	})
}

func TestFailingWritesAreRepeatedWithoutDuplicates(t *testing.T) {
	inWorld(t, 5, func(w world) {
		n := 0
		w.Refuse(func(a kubetesting.Action) error {
			if n++; n%3 == 0 && a.GetResource().Resource != "nodes" {
				return apierrors.NewInternalError(fmt.Errorf("disk full"))
			}
			return nil
		})
		for { // a user tries again, too
			if _, err := w.Client.AppsV1().DaemonSets("ns").Create(t.Context(), agent(), metav1.CreateOptions{}); err == nil {
				break
			}
		}
		w.Pass(10 * time.Minute)
		w.Refuse(nil)
		w.edit(image("v2"))
		w.Pass(10 * time.Minute)
		w.expect("n0 v2", "n1 v2", "n2 v2", "n3 v2", "n4 v2")
		if r := w.revisions(); len(r) != 2 {
			t.Errorf("%d revisions", len(r))
		}
	})
}

func TestNamespaceThatTerminatesGetsNoPods(t *testing.T) {
	inWorld(t, 3, func(w world) {
		attempts := 0
		w.Refuse(func(a kubetesting.Action) error {
			if a.GetVerb() != "create" || a.GetResource().Resource == "daemonsets" {
				return nil
			}
			attempts++
			err := apierrors.NewForbidden(corev1.Resource("pods"), "", fmt.Errorf("namespace is being terminated"))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
			return err
		})
		w.create(agent())
		w.Pass(time.Hour)
		if attempts > 2 {
			t.Errorf("%d attempts", attempts)
		}
	})
}

func TestDaemonSetThatIsBeingDeletedIsLeftAlone(t *testing.T) {
	inWorld(t, 1, func(w world) {
		w.create(with(func(ds *appsv1.DaemonSet) { ds.Finalizers = []string{"foregroundDeletion"} }))
		w.Pass(3 * time.Second)
		if err := w.Client.AppsV1().DaemonSets("ns").Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		p := w.pods()[0]
		if err := w.Client.CoreV1().Pods("ns").Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.Pass(time.Minute)
		w.expect()
	})
}
