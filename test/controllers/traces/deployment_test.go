package traces

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/replicaset"

	weftdeployment "weft.dev/weft/controlplane/controllers/deployment"
	weftreplicaset "weft.dev/weft/controlplane/controllers/replicaset"
	"weft.dev/weft/controlplane/reconcile"
)

func TestDeploymentsEndAsUpstream(t *testing.T) {
	check(t, deployments())
}

func deployments() kind {
	return kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{
				must[*weftdeployment.Controller](t)(weftdeployment.New(c.Env("deployment-controller"))),
				must[*weftreplicaset.Controller](t)(weftreplicaset.New(c.Env("replicaset-controller"))),
			}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			apps, pods := c.Informers.Apps().V1(), c.Informers.Core().V1().Pods()
			d, err := deployment.NewDeploymentController(t.Context(), apps.Deployments(), apps.ReplicaSets(), pods, c.Client)
			if err != nil {
				t.Fatal(err)
			}
			rs := replicaset.NewReplicaSetController(t.Context(), apps.ReplicaSets(), pods, c.Client, replicaset.BurstReplicas)
			return []reconcile.Runner{
				upstream{"deployment", func(ctx context.Context) { d.Run(ctx, workers) }},
				upstream{"replicaset", func(ctx context.Context) { rs.Run(ctx, workers) }},
			}
		},
		create: func(w *world, _ int) {
			must[*appsv1.Deployment](w.t)(w.Client.AppsV1().Deployments(namespace).Create(w.t.Context(), newDeployment(), metav1.CreateOptions{}))
		},
		actions: append(deploymentActions, podActions...),
		pause:   held,
		nudge:   editDeployment(func(d *appsv1.Deployment, n int) { d.Labels = map[string]string{"look": fmt.Sprint(n)} }),
		// The longest progress deadline is two minutes. More would take long:
		// upstream is busy all the time with a Deployment that was complete and
		// is not any more.
		settle:   3 * time.Minute,
		describe: func(w *world) string { return w.describeDeployments() + w.describeSets() + w.describePods() },
	}
}

// newDeployment is one with the API server's defaults, which testcluster does
// not set, but for a shorter progress deadline.
func newDeployment() *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace},
		Spec: appsv1.DeploymentSpec{
			Replicas:                new(int32(3)),
			Selector:                &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template:                podTemplate("v1"),
			Strategy:                rolling(intstr.FromString("25%"), intstr.FromString("25%")),
			RevisionHistoryLimit:    new(int32(10)),
			ProgressDeadlineSeconds: new(int32(120)),
		},
	}
}

func rolling(surge, unavailable intstr.IntOrString) appsv1.DeploymentStrategy {
	return appsv1.DeploymentStrategy{
		Type:          appsv1.RollingUpdateDeploymentStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
	}
}

// strategies are what a Deployment is switched between.
var strategies = []appsv1.DeploymentStrategy{
	rolling(intstr.FromString("25%"), intstr.FromString("25%")),
	rolling(intstr.FromInt32(0), intstr.FromInt32(1)),
	rolling(intstr.FromInt32(2), intstr.FromInt32(0)),
	rolling(intstr.FromString("100%"), intstr.FromInt32(0)),
	{Type: appsv1.RecreateDeploymentStrategyType},
}

// images is what a template is switched between; broken pods are never ready.
var images = []string{"v1", "v2", "v3", "broken"}

func editDeployment(edit func(d *appsv1.Deployment, n int)) func(*world, int) {
	return func(w *world, n int) {
		api := w.Client.AppsV1().Deployments(namespace)
		d := must[*appsv1.Deployment](w.t)(api.Get(w.t.Context(), "web", metav1.GetOptions{}))
		edit(d, n)
		must[*appsv1.Deployment](w.t)(api.Update(w.t.Context(), d, metav1.UpdateOptions{}))
	}
}

var deploymentActions = []action{
	{"scale", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.Replicas = new(int32(n % 12)) })},
	{"image", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.Template.Spec.Containers[0].Image = images[n%len(images)] })},
	{"image", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.Template.Spec.Containers[0].Image = images[n%3] })},
	{"pause or resume", editDeployment(func(d *appsv1.Deployment, _ int) { d.Spec.Paused = !d.Spec.Paused })},
	{"strategy", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.Strategy = strategies[n%len(strategies)] })},
	{"minReadySeconds", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.MinReadySeconds = int32(n % 3 * 5) })},
	{"history limit", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.RevisionHistoryLimit = new(int32(n % 3)) })},
	{"progress deadline", editDeployment(func(d *appsv1.Deployment, n int) { d.Spec.ProgressDeadlineSeconds = new(int32(10 + n%50)) })},
	{"scale and image", editDeployment(func(d *appsv1.Deployment, n int) {
		d.Spec.Replicas = new(int32(n % 12))
		d.Spec.Template.Spec.Containers[0].Image = images[n%3]
	})},
	{"annotate", editDeployment(func(d *appsv1.Deployment, n int) {
		d.Annotations = maps.Clone(d.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations["note"] = fmt.Sprint(n % 3)
	})},
	{"scale a set", editSet(func(set *appsv1.ReplicaSet, n int) { set.Spec.Replicas = new(int32(n % 7)) })},
	{"delete a set", func(w *world, n int) {
		if set := pick(w.sets(), n); set != nil {
			_ = w.Client.AppsV1().ReplicaSets(namespace).Delete(w.t.Context(), set.Name, metav1.DeleteOptions{})
			w.Pass(time.Second)
			w.collectGarbage()
		}
	}},
	{"roll back", func(w *world, n int) {
		if set := pick(w.sets(), n); set != nil {
			editDeployment(func(d *appsv1.Deployment, _ int) {
				d.Spec.Template = *set.Spec.Template.DeepCopy()
				delete(d.Spec.Template.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
			})(w, n)
		}
	}},
	{"label pods", editDeployment(func(d *appsv1.Deployment, n int) {
		d.Spec.Template.Labels = map[string]string{"app": "web", "tier": fmt.Sprint(n % 2)}
	})},
	{"orphan a set", editSet(func(set *appsv1.ReplicaSet, _ int) { set.OwnerReferences = nil })},
	{"release a set", editSet(func(set *appsv1.ReplicaSet, _ int) { set.Labels = map[string]string{"app": "stray"} })},
	{"take back a set", editSet(func(set *appsv1.ReplicaSet, _ int) { set.Labels = set.Spec.Template.Labels })},
	{"make anew", func(w *world, n int) {
		api := w.Client.AppsV1().Deployments(namespace)
		d := must[*appsv1.Deployment](w.t)(api.Get(w.t.Context(), "web", metav1.GetOptions{}))
		_ = api.Delete(w.t.Context(), d.Name, metav1.DeleteOptions{})
		w.replace(d.UID, n, func(w *world, _ int) {
			must[*appsv1.Deployment](w.t)(api.Create(w.t.Context(), newDeployment(), metav1.CreateOptions{}))
		})
	}},
}

// editSet edits one of the ReplicaSets.
func editSet(edit func(set *appsv1.ReplicaSet, n int)) func(*world, int) {
	return func(w *world, n int) {
		if set := pick(w.sets(), n); set != nil {
			edit(set, n)
			must[*appsv1.ReplicaSet](w.t)(w.Client.AppsV1().ReplicaSets(namespace).Update(w.t.Context(), set, metav1.UpdateOptions{}))
		}
	}
}

// sets returns all ReplicaSets by name, which the template decides.
func (w *world) sets() []*appsv1.ReplicaSet {
	list := must[*appsv1.ReplicaSetList](w.t)(w.Client.AppsV1().ReplicaSets(namespace).List(w.t.Context(), metav1.ListOptions{}))
	return slices.SortedFunc(slices.Values(pointers(list.Items)), func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(a.Name, b.Name) })
}

func (w *world) describeDeployments() string {
	var b strings.Builder
	list := must[*appsv1.DeploymentList](w.t)(w.Client.AppsV1().Deployments(namespace).List(w.t.Context(), metav1.ListOptions{}))
	for _, d := range list.Items {
		s := d.Status
		fmt.Fprintf(&b, "Deployment %s annotations %s observed %t\n", d.Name, describeMap(d.Annotations), s.ObservedGeneration == d.Generation)
		fmt.Fprintf(&b, "status: %d replicas, %d updated, %d ready, %d available, %d unavailable, terminating %s, collisions %s\n",
			s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas, s.UnavailableReplicas, optional(s.TerminatingReplicas), optional(s.CollisionCount))
		var lines []string
		for _, c := range s.Conditions {
			lines = append(lines, fmt.Sprintf("condition %s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message))
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

func (w *world) describeSets() string {
	var b strings.Builder
	for _, set := range w.sets() {
		s := set.Status
		fmt.Fprintf(&b, "ReplicaSet %s: size %d, minReadySeconds %d, labels %s, selector %s, annotations %s\n", set.Name, *set.Spec.Replicas, set.Spec.MinReadySeconds,
			describeMap(set.Labels), describeMap(set.Spec.Selector.MatchLabels), describeMap(set.Annotations))
		fmt.Fprintf(&b, "status of %s: %d replicas, %d labelled, %d ready, %d available, terminating %s, observed %t\n", set.Name,
			s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas, optional(s.TerminatingReplicas), s.ObservedGeneration == set.Generation)
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "condition of %s: %s=%s %s\n", set.Name, c.Type, c.Status, c.Reason)
		}
	}
	return b.String()
}
