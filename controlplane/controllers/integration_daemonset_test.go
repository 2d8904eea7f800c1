package controllers_test

import (
	"fmt"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// wantedNode returns the node that a daemon pod is for, node-1 for any other.
func wantedNode(pod *corev1.Pod) string {
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
	}
	return "node-1"
}

func (w world) daemons(t *testing.T) {
	api := w.admin.AppsV1().DaemonSets("default")
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "agent"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "agent"}},
			Template: template("agent", "v1"),
		},
	}
	// The nodes of this test are never ready.
	ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	must[*appsv1.DaemonSet](t)(api.Create(t.Context(), ds, metav1.CreateOptions{}))
	complete := func(image string, revisions ...int64) {
		t.Helper()
		eventually(t, "every node runs "+image, func() error { return w.daemonsComplete(t, image, revisions) })
	}
	complete("v1", 1)

	patch := []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"v2"}]}}}}`)
	must[*appsv1.DaemonSet](t)(api.Patch(t.Context(), "agent", "application/strategic-merge-patch+json", patch, metav1.PatchOptions{}))
	complete("v2", 1, 2)

	undo := w.daemonRevisions(t)[0].Data.Raw
	must[*appsv1.DaemonSet](t)(api.Patch(t.Context(), "agent", "application/strategic-merge-patch+json", undo, metav1.PatchOptions{}))
	complete("v1", 2, 3)
}

func (w world) daemonsComplete(t *testing.T, image string, revisions []int64) error {
	ds, err := w.admin.AppsV1().DaemonSets("default").Get(t.Context(), "agent", metav1.GetOptions{})
	if err != nil {
		return err
	}
	s := ds.Status
	if s.ObservedGeneration != ds.Generation || s.DesiredNumberScheduled != 2 || s.UpdatedNumberScheduled != 2 || s.NumberAvailable != 2 {
		return fmt.Errorf("status %+v", s)
	}
	pods, err := w.admin.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=agent"})
	if err != nil {
		return err
	}
	var nodes []string
	for _, pod := range pods.Items {
		if pod.Spec.Containers[0].Image != image {
			return fmt.Errorf("%s runs %s", pod.Name, pod.Spec.Containers[0].Image)
		}
		nodes = append(nodes, pod.Spec.NodeName)
	}
	slices.Sort(nodes)
	if !slices.Equal(nodes, []string{"node-1", "node-2"}) {
		return fmt.Errorf("pods on %v", nodes)
	}
	var numbers []int64
	for _, r := range w.daemonRevisions(t) {
		numbers = append(numbers, r.Revision)
	}
	if !slices.Equal(numbers, revisions) {
		return fmt.Errorf("revisions %v, want %v", numbers, revisions)
	}
	return nil
}

// daemonRevisions returns the DaemonSet's revisions, oldest first.
func (w world) daemonRevisions(t *testing.T) []appsv1.ControllerRevision {
	t.Helper()
	list := must[*appsv1.ControllerRevisionList](t)(w.admin.AppsV1().ControllerRevisions("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=agent"}))
	slices.SortFunc(list.Items, func(a, b appsv1.ControllerRevision) int { return int(a.Revision - b.Revision) })
	return list.Items
}
