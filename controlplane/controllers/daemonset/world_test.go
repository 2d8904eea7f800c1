package daemonset

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// world is a cluster that runs the controller.
type world struct {
	*testcluster.Cluster
	t *testing.T
}

// inWorld runs test in a cluster with the nodes n0 … n-1, where pods become
// ready after a second and take two to end.
func inWorld(t *testing.T, nodes int, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		w.Broken = "broken"
		c, err := New(w.Env("daemon-set-controller"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range machines(nodes) {
			w.addNode(n)
		}
		w.Nodes(time.Second, 2*time.Second)
		w.Run(c)
		test(w)
		w.Pass(time.Second) // the informers take the last events
	})
}

func (w world) addNode(n *corev1.Node) {
	w.t.Helper()
	testcluster.Must[*corev1.Node](w.t)(w.Client.CoreV1().Nodes().Create(w.t.Context(), n, metav1.CreateOptions{}))
}

func (w world) removeNode(name string) {
	w.t.Helper()
	if err := w.Client.CoreV1().Nodes().Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w world) editNode(name string, edit func(*corev1.Node)) {
	w.t.Helper()
	n := testcluster.Must[*corev1.Node](w.t)(w.Client.CoreV1().Nodes().Get(w.t.Context(), name, metav1.GetOptions{}))
	edit(n)
	testcluster.Must[*corev1.Node](w.t)(w.Client.CoreV1().Nodes().Update(w.t.Context(), n, metav1.UpdateOptions{}))
}

func (w world) create(ds *appsv1.DaemonSet) *appsv1.DaemonSet {
	w.t.Helper()
	ds.UID = ""
	return testcluster.Must[*appsv1.DaemonSet](w.t)(w.Client.AppsV1().DaemonSets("ns").Create(w.t.Context(), ds, metav1.CreateOptions{}))
}

func (w world) get() *appsv1.DaemonSet {
	w.t.Helper()
	return testcluster.Must[*appsv1.DaemonSet](w.t)(w.Client.AppsV1().DaemonSets("ns").Get(w.t.Context(), "agent", metav1.GetOptions{}))
}

func (w world) edit(change func(*appsv1.DaemonSet)) {
	w.t.Helper()
	ds := w.get()
	change(ds)
	testcluster.Must[*appsv1.DaemonSet](w.t)(w.Client.AppsV1().DaemonSets("ns").Update(w.t.Context(), ds, metav1.UpdateOptions{}))
}

func (w world) pods() []corev1.Pod {
	w.t.Helper()
	return testcluster.Must[*corev1.PodList](w.t)(w.Client.CoreV1().Pods("ns").List(w.t.Context(), metav1.ListOptions{})).Items
}

// expect compares all pods, as "node image" with a note on those that
// terminate or are not ready.
func (w world) expect(want ...string) {
	w.t.Helper()
	var got []string
	for _, p := range w.pods() {
		line := targetNode(&p) + " " + p.Spec.Containers[0].Image
		if p.DeletionTimestamp != nil {
			line += " terminating"
		} else if len(p.Status.Conditions) == 0 {
			line += " starting"
		}
		got = append(got, line)
	}
	slices.Sort(got)
	if g, w2 := strings.Join(got, ", "), strings.Join(want, ", "); g != w2 {
		w.t.Errorf("pods\n got %s\nwant %s", g, w2)
	}
}

func (w world) expectStatus(want string) {
	w.t.Helper()
	ds := w.get()
	s := ds.Status
	got := fmt.Sprintf("%d/%d/%d of %d", s.NumberAvailable, s.UpdatedNumberScheduled, s.CurrentNumberScheduled, s.DesiredNumberScheduled)
	if s.NumberMisscheduled > 0 {
		got += fmt.Sprintf(", %d misscheduled", s.NumberMisscheduled)
	}
	if got != want {
		w.t.Errorf("available/updated/scheduled of desired: got %s, want %s", got, want)
	}
	if s.ObservedGeneration != ds.Generation {
		w.t.Errorf("observed generation %d of %d", s.ObservedGeneration, ds.Generation)
	}
}

func (w world) revisions() []appsv1.ControllerRevision {
	w.t.Helper()
	list := testcluster.Must[*appsv1.ControllerRevisionList](w.t)(w.Client.AppsV1().ControllerRevisions("ns").List(w.t.Context(), metav1.ListOptions{}))
	slices.SortFunc(list.Items, func(a, b appsv1.ControllerRevision) int { return int(a.Revision - b.Revision) })
	return list.Items
}

// eventReasons are those of all events, sorted, each once.
func (w world) eventReasons() string {
	w.t.Helper()
	reasons := map[string]bool{}
	for _, a := range w.Client.Actions() {
		create, ok := a.(kubetesting.CreateAction)
		if !ok || a.GetResource().Resource != "events" {
			continue
		}
		e := create.GetObject().(*corev1.Event)
		reasons[e.Reason] = true
		if e.Source.Component != "daemonset-controller" {
			w.t.Errorf("event %s is from %s", e.Reason, e.Source.Component)
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(reasons)), " ")
}
