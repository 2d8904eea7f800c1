package traces

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/replication"

	weftreplicaset "weft.dev/weft/controlplane/controllers/replicaset"
	"weft.dev/weft/controlplane/reconcile"
)

func TestReplicaSetsEndAsUpstream(t *testing.T) {
	edit := func(edit func(set *appsv1.ReplicaSet, n int)) func(*world, int) {
		return func(w *world, n int) {
			api := w.Client.AppsV1().ReplicaSets(namespace)
			set := must[*appsv1.ReplicaSet](w.t)(api.Get(w.t.Context(), "web", metav1.GetOptions{}))
			edit(set, n)
			must[*appsv1.ReplicaSet](w.t)(api.Update(w.t.Context(), set, metav1.UpdateOptions{}))
		}
	}
	create := func(w *world, n int) {
		must[*appsv1.ReplicaSet](w.t)(w.Client.AppsV1().ReplicaSets(namespace).Create(w.t.Context(), &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace},
			Spec: appsv1.ReplicaSetSpec{
				Replicas: new(int32(n % 10)),
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
				Template: podTemplate("v1"),
			},
		}, metav1.CreateOptions{}))
	}
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{must[*weftreplicaset.Controller](t)(weftreplicaset.New(c.Env("replicaset-controller")))}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			rs := replicaset.NewReplicaSetController(t.Context(), c.Informers.Apps().V1().ReplicaSets(), c.Informers.Core().V1().Pods(), c.Client, replicaset.BurstReplicas)
			return []reconcile.Runner{upstream{"replicaset", func(ctx context.Context) { rs.Run(ctx, workers) }}}
		},
		create: create,
		actions: append([]action{
			{"scale", edit(func(set *appsv1.ReplicaSet, n int) { set.Spec.Replicas = new(int32(n % 10)) })},
			{"scale", edit(func(set *appsv1.ReplicaSet, n int) { set.Spec.Replicas = new(int32(n % 10)) })},
			{"image", edit(func(set *appsv1.ReplicaSet, n int) {
				set.Spec.Template.Spec.Containers[0].Image = images[n%len(images)]
			})},
			{"label pods", edit(func(set *appsv1.ReplicaSet, n int) {
				set.Spec.Template.Labels = map[string]string{"app": "web", "tier": fmt.Sprint(n % 2)}
			})},
			{"minReadySeconds", edit(func(set *appsv1.ReplicaSet, n int) { set.Spec.MinReadySeconds = int32(n % 3 * 5) })},
			{"an orphan appears", strayPod("web")},
			{"make anew", func(w *world, n int) {
				set := must[*appsv1.ReplicaSet](w.t)(w.Client.AppsV1().ReplicaSets(namespace).Get(w.t.Context(), "web", metav1.GetOptions{}))
				_ = w.Client.AppsV1().ReplicaSets(namespace).Delete(w.t.Context(), set.Name, metav1.DeleteOptions{})
				w.replace(set.UID, n, create)
			}},
		}, podActions...),
		pause:    held,
		nudge:    edit(func(set *appsv1.ReplicaSet, n int) { set.Labels = map[string]string{"look": fmt.Sprint(n)} }),
		describe: func(w *world) string { return w.describeSets() + w.describePods() },
	})
}

func TestReplicationControllersEndAsUpstream(t *testing.T) {
	edit := func(edit func(rc *corev1.ReplicationController, n int)) func(*world, int) {
		return func(w *world, n int) {
			api := w.Client.CoreV1().ReplicationControllers(namespace)
			rc := must[*corev1.ReplicationController](w.t)(api.Get(w.t.Context(), "web", metav1.GetOptions{}))
			edit(rc, n)
			must[*corev1.ReplicationController](w.t)(api.Update(w.t.Context(), rc, metav1.UpdateOptions{}))
		}
	}
	create := func(w *world, n int) {
		template := podTemplate("v1")
		must[*corev1.ReplicationController](w.t)(w.Client.CoreV1().ReplicationControllers(namespace).Create(w.t.Context(), &corev1.ReplicationController{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace},
			Spec: corev1.ReplicationControllerSpec{
				Replicas: new(int32(n % 10)), Selector: map[string]string{"app": "web"}, Template: &template,
			},
		}, metav1.CreateOptions{}))
	}
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{must[*weftreplicaset.Controller](t)(weftreplicaset.NewReplication(c.Env("replication-controller")))}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			core := c.Informers.Core().V1()
			rc := replication.NewReplicationManager(t.Context(), core.Pods(), core.ReplicationControllers(), c.Client, replication.BurstReplicas)
			return []reconcile.Runner{upstream{"replication", func(ctx context.Context) { rc.Run(ctx, workers) }}}
		},
		create: create,
		actions: append([]action{
			{"scale", edit(func(rc *corev1.ReplicationController, n int) { rc.Spec.Replicas = new(int32(n % 10)) })},
			{"scale", edit(func(rc *corev1.ReplicationController, n int) { rc.Spec.Replicas = new(int32(n % 10)) })},
			{"image", edit(func(rc *corev1.ReplicationController, n int) {
				rc.Spec.Template.Spec.Containers[0].Image = images[n%len(images)]
			})},
			{"selector", edit(func(rc *corev1.ReplicationController, n int) {
				selector := []map[string]string{{"app": "web"}, {"app": "stray"}, {"app": "web", "tier": "1"}}[n%3]
				rc.Spec.Selector, rc.Spec.Template.Labels = selector, selector
			})},
			{"minReadySeconds", edit(func(rc *corev1.ReplicationController, n int) { rc.Spec.MinReadySeconds = int32(n % 3 * 5) })},
			{"an orphan appears", strayPod("web")},
			{"an orphan appears", strayPod("stray")},
			{"make anew", func(w *world, n int) {
				rc := must[*corev1.ReplicationController](w.t)(w.Client.CoreV1().ReplicationControllers(namespace).Get(w.t.Context(), "web", metav1.GetOptions{}))
				_ = w.Client.CoreV1().ReplicationControllers(namespace).Delete(w.t.Context(), rc.Name, metav1.DeleteOptions{})
				w.replace(rc.UID, n, create)
			}},
		}, podActions...),
		pause:    held,
		nudge:    edit(func(rc *corev1.ReplicationController, n int) { rc.Labels = map[string]string{"look": fmt.Sprint(n)} }),
		describe: func(w *world) string { return w.describeReplicationControllers() + w.describePods() },
	})
}

// replace makes the nth variant of a workload that was deleted. What belonged
// to it is either orphaned or collected before.
func (w *world) replace(old types.UID, n int, create func(w *world, n int)) {
	if n%2 == 0 {
		w.disown(old)
	}
	w.Pass(time.Second)
	w.collectGarbage()
	w.Pass(time.Second)
	create(w, n/2)
}

// strayPod makes a pod with that label which nobody controls.
func strayPod(app string) func(*world, int) {
	return func(w *world, n int) {
		template := podTemplate(images[n%3])
		must[*corev1.Pod](w.t)(w.Client.CoreV1().Pods(namespace).Create(w.t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "stray-", Namespace: namespace, Labels: map[string]string{"app": app}},
			Spec:       template.Spec,
		}, metav1.CreateOptions{}))
	}
}

func (w *world) describeReplicationControllers() string {
	text := ""
	list := must[*corev1.ReplicationControllerList](w.t)(w.Client.CoreV1().ReplicationControllers(namespace).List(w.t.Context(), metav1.ListOptions{}))
	for _, rc := range list.Items {
		s := rc.Status
		text += fmt.Sprintf("ReplicationController %s: %d replicas, %d labelled, %d ready, %d available, observed %t\n",
			rc.Name, s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas, s.ObservedGeneration == rc.Generation)
		for _, c := range s.Conditions {
			text += fmt.Sprintf("condition of %s: %s=%s %s\n", rc.Name, c.Type, c.Status, c.Reason)
		}
	}
	return text
}
