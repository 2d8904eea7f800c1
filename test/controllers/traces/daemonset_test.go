package traces

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/flowcontrol"
	appsdefaults "k8s.io/kubernetes/pkg/apis/apps/v1"
	"k8s.io/kubernetes/pkg/controller/daemon"

	weftdaemonset "weft.dev/weft/controlplane/controllers/daemonset"
	"weft.dev/weft/controlplane/reconcile"
)

func TestDaemonSetsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{must[*weftdaemonset.Controller](t)(weftdaemonset.New(c.Env("daemon-set-controller")))}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			apps, core := c.Informers.Apps().V1(), c.Informers.Core().V1()
			d, err := daemon.NewDaemonSetsController(t.Context(), apps.DaemonSets(), apps.ControllerRevisions(), core.Pods(), core.Nodes(), c.Client, flowcontrol.NewBackOff(time.Second, 15*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			return []reconcile.Runner{upstream{"daemonset", func(ctx context.Context) { d.Run(ctx, workers) }}}
		},
		create: func(w *world, _ int) {
			for i := range 4 {
				w.addNode(i)
			}
			must[*appsv1.DaemonSet](w.t)(w.Client.AppsV1().DaemonSets(namespace).Create(w.t.Context(), newDaemonSet(), metav1.CreateOptions{}))
		},
		actions: append(daemonSetActions, podActions...),
		// Upstream counts anew when something about the DaemonSet changes, not
		// when a node does that keeps its pod.
		nudge: editDaemonSet(func(d *appsv1.DaemonSet, n int) { d.Labels = map[string]string{"look": fmt.Sprint(n)} }),
		describe: func(w *world) string {
			return w.numberRevisions(w.describeDaemonSets() + w.describeRevisions() + w.describePods())
		},
	})
}

func newDaemonSet() *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "agent", Namespace: namespace},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: podTemplate("v1"),
		},
	}
	appsdefaults.SetObjectDefaults_DaemonSet(d)
	return d
}

func nodeName(n int) string { return fmt.Sprint("node-", n%6) }

func (w *world) addNode(n int) {
	_, _ = w.Client.CoreV1().Nodes().Create(w.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), Labels: map[string]string{"disk": "ssd"}},
	}, metav1.CreateOptions{})
}

// editNode edits a node if it is there.
func editNode(edit func(node *corev1.Node, n int)) func(*world, int) {
	return func(w *world, n int) {
		node, err := w.Client.CoreV1().Nodes().Get(w.t.Context(), nodeName(n), metav1.GetOptions{})
		if err != nil {
			return
		}
		edit(node, n/6)
		must[*corev1.Node](w.t)(w.Client.CoreV1().Nodes().Update(w.t.Context(), node, metav1.UpdateOptions{}))
	}
}

func editDaemonSet(edit func(d *appsv1.DaemonSet, n int)) func(*world, int) {
	return func(w *world, n int) {
		api := w.Client.AppsV1().DaemonSets(namespace)
		d := must[*appsv1.DaemonSet](w.t)(api.Get(w.t.Context(), "agent", metav1.GetOptions{}))
		edit(d, n)
		must[*appsv1.DaemonSet](w.t)(api.Update(w.t.Context(), d, metav1.UpdateOptions{}))
	}
}

func rollingDaemon(surge, unavailable intstr.IntOrString) appsv1.DaemonSetUpdateStrategy {
	return appsv1.DaemonSetUpdateStrategy{
		Type:          appsv1.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable},
	}
}

var daemonStrategies = []appsv1.DaemonSetUpdateStrategy{
	rollingDaemon(intstr.FromInt32(0), intstr.FromInt32(1)),
	rollingDaemon(intstr.FromInt32(0), intstr.FromString("50%")),
	rollingDaemon(intstr.FromInt32(1), intstr.FromInt32(0)),
	rollingDaemon(intstr.FromString("50%"), intstr.FromInt32(0)),
	{Type: appsv1.OnDeleteDaemonSetStrategyType},
}

var daemonSetActions = []action{
	{"image", editDaemonSet(func(d *appsv1.DaemonSet, n int) { d.Spec.Template.Spec.Containers[0].Image = images[n%len(images)] })},
	{"image", editDaemonSet(func(d *appsv1.DaemonSet, n int) { d.Spec.Template.Spec.Containers[0].Image = images[n%3] })},
	{"strategy", editDaemonSet(func(d *appsv1.DaemonSet, n int) { d.Spec.UpdateStrategy = daemonStrategies[n%len(daemonStrategies)] })},
	{"minReadySeconds", editDaemonSet(func(d *appsv1.DaemonSet, n int) { d.Spec.MinReadySeconds = int32(n % 3 * 5) })},
	{"history limit", editDaemonSet(func(d *appsv1.DaemonSet, n int) { d.Spec.RevisionHistoryLimit = new(int32(n % 3)) })},
	{"node selector", editDaemonSet(func(d *appsv1.DaemonSet, n int) {
		d.Spec.Template.Spec.NodeSelector = []map[string]string{nil, {"disk": "ssd"}}[n%2]
	})},
	{"tolerate", editDaemonSet(func(d *appsv1.DaemonSet, n int) {
		d.Spec.Template.Spec.Tolerations = [][]corev1.Toleration{nil, {{Operator: corev1.TolerationOpExists}}}[n%2]
	})},
	{"roll back", func(w *world, n int) {
		if r := pick(w.revisions(), n); r != nil {
			editDaemonSet(func(d *appsv1.DaemonSet, _ int) { restore(w, r, d) })(w, n)
		}
	}},
	{"delete a revision", func(w *world, n int) {
		w.rememberHashes()
		deleteRevision(w, n)
	}},
	{"make anew", func(w *world, n int) {
		api := w.Client.AppsV1().DaemonSets(namespace)
		d := must[*appsv1.DaemonSet](w.t)(api.Get(w.t.Context(), "agent", metav1.GetOptions{}))
		_ = api.Delete(w.t.Context(), d.Name, metav1.DeleteOptions{})
		w.replace(d.UID, n, func(w *world, _ int) {
			must[*appsv1.DaemonSet](w.t)(api.Create(w.t.Context(), newDaemonSet(), metav1.CreateOptions{}))
		})
	}},
	{"node joins", func(w *world, n int) { w.addNode(n) }},
	{"node leaves", func(w *world, n int) {
		_ = w.Client.CoreV1().Nodes().Delete(w.t.Context(), nodeName(n), metav1.DeleteOptions{})
		w.Pass(time.Second)
		for _, pod := range w.pods() { // as the collector of such pods would
			if pod.Spec.NodeName == nodeName(n) {
				_ = w.Client.CoreV1().Pods(namespace).Delete(w.t.Context(), pod.Name, *metav1.NewDeleteOptions(0))
			}
		}
	}},
	{"cordon", editNode(func(node *corev1.Node, n int) { node.Spec.Unschedulable = n%2 == 0 })},
	{"taint", editNode(func(node *corev1.Node, n int) {
		node.Spec.Taints = [][]corev1.Taint{nil, {{Key: "k", Effect: corev1.TaintEffectNoSchedule}}, {{Key: "k", Effect: corev1.TaintEffectNoExecute}}}[n%3]
	})},
	{"node label", editNode(func(node *corev1.Node, n int) { node.Labels = map[string]string{"disk": []string{"ssd", "hdd"}[n%2]} })},
}

func (w *world) describeDaemonSets() string {
	var b strings.Builder
	list := must[*appsv1.DaemonSetList](w.t)(w.Client.AppsV1().DaemonSets(namespace).List(w.t.Context(), metav1.ListOptions{}))
	for _, d := range list.Items {
		s := d.Status
		fmt.Fprintf(&b, "DaemonSet %s: annotations %s observed %t, collisions %s\n", d.Name, describeMap(d.Annotations), s.ObservedGeneration == d.Generation, optional(s.CollisionCount))
		fmt.Fprintf(&b, "status: %d desired, %d current, %d misscheduled, %d ready, %d available, %d unavailable, %d updated\n", s.DesiredNumberScheduled,
			s.CurrentNumberScheduled, s.NumberMisscheduled, s.NumberReady, s.NumberAvailable, s.NumberUnavailable, s.UpdatedNumberScheduled)
	}
	return b.String()
}

// numberRevisions puts numbers in place of the revisions' hashes: upstream
// hashes the template of a DaemonSet, Weft what the revision holds, and either
// finds a revision of the other by what it holds.
func (w *world) numberRevisions(text string) string {
	w.rememberHashes()
	for hash, number := range w.hashes {
		text = strings.ReplaceAll(text, hash, fmt.Sprint("#", number))
	}
	return text
}

// rememberHashes notes the revisions there are: pods may outlive them.
func (w *world) rememberHashes() {
	if w.hashes == nil {
		w.hashes = map[string]int64{}
	}
	for _, r := range w.revisions() {
		w.hashes[r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = r.Revision
	}
}
