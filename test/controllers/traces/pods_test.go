package traces

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/controlplane/reconcile"
)

const namespace = "default"

func podTemplate(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			Containers:    []corev1.Container{{Name: "c", Image: image}},
			RestartPolicy: corev1.RestartPolicyAlways,
		},
	}
}

// podActions are what happens to pods. Which one is chosen by its place among
// all, in an order that is the same on both sides.
var podActions = []action{
	{"delete pod", onPod(func(w *world, pod *corev1.Pod) {
		_ = w.Client.CoreV1().Pods(namespace).Delete(w.t.Context(), pod.Name, metav1.DeleteOptions{})
	})},
	{"delete pod at once", onPod(func(w *world, pod *corev1.Pod) {
		_ = w.Client.CoreV1().Pods(namespace).Delete(w.t.Context(), pod.Name, *metav1.NewDeleteOptions(0))
	})},
	{"pod not ready", onPod(func(w *world, pod *corev1.Pod) { w.SetReady(pod, false) })},
	{"pod ready", onPod(func(w *world, pod *corev1.Pod) { w.SetReady(pod, true) })},
	{"pod fails", onPod(func(w *world, pod *corev1.Pod) { w.finish(pod, corev1.PodFailed) })},
	{"pod ends well", onPod(func(w *world, pod *corev1.Pod) { w.finish(pod, corev1.PodSucceeded) })},
	{"evict pod", onPod(func(w *world, pod *corev1.Pod) {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI"})
		_, _ = w.Client.CoreV1().Pods(namespace).UpdateStatus(w.t.Context(), pod, metav1.UpdateOptions{})
		_ = w.Client.CoreV1().Pods(namespace).Delete(w.t.Context(), pod.Name, metav1.DeleteOptions{})
	})},
	{"node lost", func(w *world, n int) {
		lost := w.readyThird(n)
		for _, pod := range lost {
			w.SetReady(pod, false)
		}
		w.Pass(40 * time.Second)
		for _, pod := range lost {
			_ = w.Client.CoreV1().Pods(namespace).Delete(w.t.Context(), pod.Name, *metav1.NewDeleteOptions(0))
		}
	}},
	{"node returns", func(w *world, n int) {
		there := w.readyThird(n)
		for _, pod := range there {
			w.SetReady(pod, false)
		}
		w.Pass(10 * time.Second)
		for _, pod := range there {
			w.SetReady(pod, true)
		}
	}},
	// Not one that is ending: upstream takes no notice of that until something
	// else happens, where Weft makes another pod.
	{"orphan pod", editPod(func(pod *corev1.Pod) {
		if pod.DeletionTimestamp == nil {
			pod.OwnerReferences = nil
		}
	})},
	{"deletion cost", func(w *world, n int) {
		editPod(func(pod *corev1.Pod) {
			pod.Annotations = maps.Clone(pod.Annotations)
			if pod.Annotations == nil {
				pod.Annotations = map[string]string{}
			}
			pod.Annotations[corev1.PodDeletionCost] = fmt.Sprint(n%5 - 2)
		})(w, n)
	}},
	{"release pod", editPod(func(pod *corev1.Pod) { pod.Labels = map[string]string{"app": "stray"} })},
	{"take back pod", func(w *world, n int) {
		var stray []*corev1.Pod
		for _, pod := range w.pods() {
			if pod.Labels["app"] == "stray" {
				stray = append(stray, pod)
			}
		}
		if pod := pick(stray, n); pod != nil {
			pod.Labels = map[string]string{"app": "web"}
			_, _ = w.Client.CoreV1().Pods(namespace).Update(w.t.Context(), pod, metav1.UpdateOptions{})
		}
	}},
	{"nothing", func(*world, int) {}},
}

// readyThird returns the ready ones of every third pod.
func (w *world) readyThird(n int) []*corev1.Pod {
	var list []*corev1.Pod
	for i, pod := range w.pods() {
		if i%3 == n%3 && reconcile.IsReady(pod) {
			list = append(list, pod)
		}
	}
	return list
}

func onPod(do func(*world, *corev1.Pod)) func(*world, int) {
	return func(w *world, n int) {
		if pod := pick(w.pods(), n); pod != nil {
			do(w, pod)
		}
	}
}

func editPod(edit func(pod *corev1.Pod)) func(*world, int) {
	return onPod(func(w *world, pod *corev1.Pod) {
		edit(pod)
		_, _ = w.Client.CoreV1().Pods(namespace).Update(w.t.Context(), pod, metav1.UpdateOptions{})
	})
}

// finish ends a pod that has not ended.
func (w *world) finish(pod *corev1.Pod, phase corev1.PodPhase) {
	if !reconcile.IsFinished(pod) {
		w.SetPhase(pod, phase)
	}
}

// without returns the actions that do not have one of the names.
func without(actions []action, names ...string) []action {
	return slices.DeleteFunc(slices.Clone(actions), func(a action) bool { return slices.Contains(names, a.name) })
}

func pick[T any](list []*T, n int) *T {
	if len(list) == 0 {
		return nil
	}
	return list[n%len(list)]
}

func pointers[T any](items []T) []*T {
	var list []*T
	for i := range items {
		list = append(list, &items[i])
	}
	return list
}

// pods returns all pods in an order that does not depend on their names.
func (w *world) pods() []*corev1.Pod {
	list := must[*corev1.PodList](w.t)(w.Client.CoreV1().Pods(namespace).List(w.t.Context(), metav1.ListOptions{}))
	return slices.SortedFunc(slices.Values(pointers(list.Items)), func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(describePod(a), describePod(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time))
	})
}

func describePod(pod *corev1.Pod) string {
	owner := "nobody"
	if ref := metav1.GetControllerOf(pod); ref != nil {
		owner = ref.Kind + " " + ref.Name
	}
	state := string(pod.Status.Phase)
	if reconcile.IsReady(pod) {
		state += ", ready"
	}
	if pod.DeletionTimestamp != nil {
		state += ", ending"
	}
	var rest []string
	for _, c := range pod.Spec.Containers {
		rest = append(rest, c.Image)
	}
	return fmt.Sprintf("pod of %s: %s, %s, on %q, labels %s annotations %s finalizers %v", owner, strings.Join(rest, " "), state, pod.Spec.NodeName, describeMap(pod.Labels), describeMap(pod.Annotations), pod.Finalizers)
}

func (w *world) describePods() string {
	var b strings.Builder
	for _, pod := range w.pods() {
		fmt.Fprintln(&b, describePod(pod))
	}
	return b.String()
}

func describeMap(m map[string]string) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		words = append(words, k+"="+m[k])
	}
	return strings.Join(words, ",")
}

func optional(n *int32) string {
	if n == nil {
		return "unknown"
	}
	return fmt.Sprint(*n)
}
