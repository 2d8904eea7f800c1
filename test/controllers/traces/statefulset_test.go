package traces

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	appsdefaults "k8s.io/kubernetes/pkg/apis/apps/v1"
	"k8s.io/kubernetes/pkg/controller/statefulset"

	weftstatefulset "weft.dev/weft/controlplane/controllers/statefulset"
	"weft.dev/weft/controlplane/reconcile"
)

func TestStatefulSetsEndAsUpstream(t *testing.T) {
	check(t, kind{
		ours: func(t *testing.T, c server) []reconcile.Runner {
			return []reconcile.Runner{must[*weftstatefulset.Controller](t)(weftstatefulset.New(c.Env("statefulset-controller")))}
		},
		theirs: func(t *testing.T, c server) []reconcile.Runner {
			apps, core := c.Informers.Apps().V1(), c.Informers.Core().V1()
			s := statefulset.NewStatefulSetController(t.Context(), core.Pods(), apps.StatefulSets(), core.PersistentVolumeClaims(), apps.ControllerRevisions(), c.Client)
			return []reconcile.Runner{upstream{"statefulset", func(ctx context.Context) { s.Run(ctx, workers) }}}
		},
		create: func(w *world, n int) {
			must[*appsv1.StatefulSet](w.t)(w.Client.AppsV1().StatefulSets(namespace).Create(w.t.Context(), newStatefulSet(n), metav1.CreateOptions{}))
		},
		// No pod is released: it would stand in the way of another of its name,
		// and what happens then depends on when creation is tried again.
		actions: append(statefulSetActions, without(podActions, "release pod", "take back pod")...),
		nudge:   lookAtStatefulSet,
		describe: func(w *world) string {
			return w.describeStatefulSets() + w.describeRevisions() + w.describeClaims() + w.describePods()
		},
	})
}

func newStatefulSet(n int) *appsv1.StatefulSet {
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: namespace},
		Spec: appsv1.StatefulSetSpec{
			Replicas:    new(int32(3)),
			ServiceName: "db",
			Selector:    &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template:    podTemplate("v1"),
		},
	}
	if n%2 == 1 {
		s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	}
	if n%3 == 1 {
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	}
	appsdefaults.SetObjectDefaults_StatefulSet(s)
	return s
}

func editStatefulSet(edit func(s *appsv1.StatefulSet, n int)) func(*world, int) {
	return func(w *world, n int) {
		api := w.Client.AppsV1().StatefulSets(namespace)
		s := must[*appsv1.StatefulSet](w.t)(api.Get(w.t.Context(), "db", metav1.GetOptions{}))
		edit(s, n)
		must[*appsv1.StatefulSet](w.t)(api.Update(w.t.Context(), s, metav1.UpdateOptions{}))
	}
}

var lookAtStatefulSet = editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Labels = map[string]string{"look": fmt.Sprint(n)} })

var retention = []appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType}

var statefulSetActions = []action{
	{"scale", editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Spec.Replicas = new(int32(n % 6)) })},
	{"image", editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Spec.Template.Spec.Containers[0].Image = images[n%len(images)] })},
	{"image", editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Spec.Template.Spec.Containers[0].Image = images[n%3] })},
	{"partition", editStatefulSet(func(s *appsv1.StatefulSet, n int) {
		s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{
			Type:          appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32(n % 4))},
		}
	})},
	{"maxUnavailable", editStatefulSet(func(s *appsv1.StatefulSet, n int) {
		s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{
			Type: appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{
				Partition:      new(int32(n / 3 % 2)),
				MaxUnavailable: []*intstr.IntOrString{new(intstr.FromInt32(2)), new(intstr.FromString("50%")), new(intstr.FromInt32(1))}[n%3],
			},
		}
	})},
	{"on delete", editStatefulSet(func(s *appsv1.StatefulSet, _ int) {
		s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	})},
	{"minReadySeconds", editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Spec.MinReadySeconds = int32(n % 3 * 5) })},
	{"first ordinal", editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: int32(n % 3)} })},
	{"history limit", editStatefulSet(func(s *appsv1.StatefulSet, n int) { s.Spec.RevisionHistoryLimit = new(int32(n % 3)) })},
	{"claim retention", editStatefulSet(func(s *appsv1.StatefulSet, n int) {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
			WhenDeleted: retention[n%2], WhenScaled: retention[n/2%2],
		}
	})},
	{"roll back", func(w *world, n int) {
		if r := pick(w.revisions(), n); r != nil {
			editStatefulSet(func(s *appsv1.StatefulSet, _ int) { restore(w, r, s) })(w, n)
		}
	}},
	{"delete a revision", func(w *world, n int) {
		deleteRevision(w, n)
		w.Pass(100 * time.Millisecond)
		// Upstream makes it again when it looks, and this alone does not make it look.
		lookAtStatefulSet(w, n)
	}},
	{"make anew", func(w *world, n int) {
		api := w.Client.AppsV1().StatefulSets(namespace)
		s := must[*appsv1.StatefulSet](w.t)(api.Get(w.t.Context(), "db", metav1.GetOptions{}))
		_ = api.Delete(w.t.Context(), s.Name, metav1.DeleteOptions{})
		w.replace(s.UID, n, func(w *world, n int) {
			anew := newStatefulSet(n)
			// The API server would refuse to give volumes to pods that have none.
			anew.Spec.VolumeClaimTemplates = s.Spec.VolumeClaimTemplates
			must[*appsv1.StatefulSet](w.t)(api.Create(w.t.Context(), anew, metav1.CreateOptions{}))
		})
	}},
}

func (w *world) describeStatefulSets() string {
	var b strings.Builder
	list := must[*appsv1.StatefulSetList](w.t)(w.Client.AppsV1().StatefulSets(namespace).List(w.t.Context(), metav1.ListOptions{}))
	for _, set := range list.Items {
		s := set.Status
		fmt.Fprintf(&b, "StatefulSet %s: observed %t, collisions %s\n", set.Name, s.ObservedGeneration == set.Generation, optional(s.CollisionCount))
		fmt.Fprintf(&b, "status: %d replicas, %d ready, %d available, %d current, %d updated\n", s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.CurrentReplicas, s.UpdatedReplicas)
		fmt.Fprintf(&b, "revisions: current %s, update %s\n", s.CurrentRevision, s.UpdateRevision)
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "condition %s=%s %s\n", c.Type, c.Status, c.Reason)
		}
	}
	return b.String()
}

// revisions returns all ControllerRevisions by number.
func (w *world) revisions() []*appsv1.ControllerRevision {
	list := must[*appsv1.ControllerRevisionList](w.t)(w.Client.AppsV1().ControllerRevisions(namespace).List(w.t.Context(), metav1.ListOptions{}))
	return slices.SortedFunc(slices.Values(pointers(list.Items)), func(a, b *appsv1.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
}

// restore gives a workload the template of a revision, as "kubectl rollout undo" does.
func restore[T any](w *world, r *appsv1.ControllerRevision, workload *T) {
	var restored T
	before := must[[]byte](w.t)(json.Marshal(workload))
	after := must[[]byte](w.t)(strategicpatch.StrategicMergePatch(before, r.Data.Raw, restored))
	if err := json.Unmarshal(after, &restored); err != nil {
		w.t.Fatal(err)
	}
	*workload = restored
}

func deleteRevision(w *world, n int) {
	if r := pick(w.revisions(), n); r != nil {
		_ = w.Client.AppsV1().ControllerRevisions(namespace).Delete(w.t.Context(), r.Name, metav1.DeleteOptions{})
	}
}

// describeRevisions lists the ControllerRevisions by number.
func (w *world) describeRevisions() string {
	list := must[*appsv1.ControllerRevisionList](w.t)(w.Client.AppsV1().ControllerRevisions(namespace).List(w.t.Context(), metav1.ListOptions{}))
	var lines []string
	for _, r := range list.Items {
		lines = append(lines, fmt.Sprintf("revision %d: %s labels %s annotations %s data %s\n", r.Revision, r.Name, describeMap(r.Labels), describeMap(r.Annotations), r.Data.Raw))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (w *world) describeClaims() string {
	list := must[*corev1.PersistentVolumeClaimList](w.t)(w.Client.CoreV1().PersistentVolumeClaims(namespace).List(w.t.Context(), metav1.ListOptions{}))
	var lines []string
	for _, c := range list.Items {
		var owners []string
		for _, ref := range c.OwnerReferences {
			owners = append(owners, fmt.Sprintf("%s %s controller %t blocks %t", ref.Kind, ref.Name, ref.Controller != nil && *ref.Controller, ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion))
		}
		lines = append(lines, fmt.Sprintf("claim %s labels %s owners %v\n", c.Name, describeMap(c.Labels), owners))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
