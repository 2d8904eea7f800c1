package statefulset

import (
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

	"weft.dev/weft/controlplane/controllers/testcluster"
)

// world is a cluster with StatefulSets and a node. Pods are ready after a
// second unless their image is "broken", and take five seconds to end.
type world struct {
	*testcluster.Cluster
	t *testing.T
}

func inWorld(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{testcluster.New(t), t}
		c, err := New(w.Env("statefulset-controller"))
		if err != nil {
			t.Fatal(err)
		}
		w.Broken = "broken"
		w.Nodes(time.Second, 5*time.Second)
		w.Run(c)
		test(w)
	})
}

func (w world) create(set *appsv1.StatefulSet) *appsv1.StatefulSet {
	w.t.Helper()
	return testcluster.Must[*appsv1.StatefulSet](w.t)(w.Client.AppsV1().StatefulSets("ns").Create(w.t.Context(), set, metav1.CreateOptions{}))
}

func (w world) get() *appsv1.StatefulSet {
	w.t.Helper()
	return testcluster.Must[*appsv1.StatefulSet](w.t)(w.Client.AppsV1().StatefulSets("ns").Get(w.t.Context(), "web", metav1.GetOptions{}))
}

func (w world) edit(change func(*appsv1.StatefulSet)) {
	w.t.Helper()
	set := w.get()
	change(set)
	testcluster.Must[*appsv1.StatefulSet](w.t)(w.Client.AppsV1().StatefulSets("ns").Update(w.t.Context(), set, metav1.UpdateOptions{}))
}

func (w world) scale(n int32) {
	w.t.Helper()
	w.edit(func(set *appsv1.StatefulSet) { set.Spec.Replicas = &n })
}

func (w world) setImage(image string) {
	w.t.Helper()
	w.edit(func(set *appsv1.StatefulSet) { set.Spec.Template.Spec.Containers[0].Image = image })
}

func (w world) pod(name string) *corev1.Pod {
	w.t.Helper()
	return testcluster.Must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods("ns").Get(w.t.Context(), name, metav1.GetOptions{}))
}

func (w world) deletePod(name string) {
	w.t.Helper()
	if err := w.Client.CoreV1().Pods("ns").Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// pods describes each pod as "name=image", with a "-" if it is being deleted.
func (w world) pods() string {
	w.t.Helper()
	list := testcluster.Must[*corev1.PodList](w.t)(w.Client.CoreV1().Pods("ns").List(w.t.Context(), metav1.ListOptions{}))
	var words []string
	for _, pod := range list.Items {
		word := pod.Name + "=" + pod.Spec.Containers[0].Image
		if pod.DeletionTimestamp != nil {
			word += "-"
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// claims describes each claim as "name" or "name<owner".
func (w world) claims() string {
	w.t.Helper()
	list := testcluster.Must[*corev1.PersistentVolumeClaimList](w.t)(w.Client.CoreV1().PersistentVolumeClaims("ns").List(w.t.Context(), metav1.ListOptions{}))
	var words []string
	for _, claim := range list.Items {
		word := claim.Name
		for _, ref := range claim.OwnerReferences {
			word += "<" + ref.Name
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func (w world) revisions() []appsv1.ControllerRevision {
	w.t.Helper()
	list := testcluster.Must[*appsv1.ControllerRevisionList](w.t)(w.Client.AppsV1().ControllerRevisions("ns").List(w.t.Context(), metav1.ListOptions{}))
	slices.SortFunc(list.Items, func(a, b appsv1.ControllerRevision) int { return int(a.Revision - b.Revision) })
	return list.Items
}

func (w world) expect(what, got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// status is "available/ready/current/updated/replicas".
func (w world) status() string {
	w.t.Helper()
	s := w.get().Status
	return fmt.Sprintf("%d/%d/%d/%d/%d", s.AvailableReplicas, s.ReadyReplicas, s.CurrentReplicas, s.UpdatedReplicas, s.Replicas)
}

// history returns in which order pods appeared and were told to end since the call.
func (w world) history() func() string {
	w.t.Helper()
	pods := w.Client.CoreV1().Pods("ns")
	seen := map[string]bool{}
	for _, pod := range testcluster.Must[*corev1.PodList](w.t)(pods.List(w.t.Context(), metav1.ListOptions{})).Items {
		seen["+"+string(pod.UID)] = true
	}
	events := testcluster.Must[watch.Interface](w.t)(pods.Watch(w.t.Context(), metav1.ListOptions{}))
	w.t.Cleanup(events.Stop)
	var words []string
	go func() {
		for e := range events.ResultChan() {
			pod := e.Object.(*corev1.Pod)
			what := "+"
			if pod.DeletionTimestamp != nil {
				what = "-"
			}
			if key := what + string(pod.UID); !seen[key] {
				seen[key] = true
				words = append(words, what+pod.Name)
			}
		}
	}()
	return func() string { return strings.Join(words, " ") }
}
