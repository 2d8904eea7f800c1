package controllers_test

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// members has a StatefulSet made, rolled out, rolled back, scaled, and deleted
// with its claims.
func (w world) members(t *testing.T) {
	const deleted = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	sets := w.admin.AppsV1().StatefulSets("default")
	must[*appsv1.StatefulSet](t)(sets.Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "member"},
		Spec: appsv1.StatefulSetSpec{
			Replicas:    new(int32(3)),
			ServiceName: "member",
			Selector:    &metav1.LabelSelector{MatchLabels: map[string]string{"app": "member"}},
			Template:    template("member", "v1"),
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				ObjectMeta: metav1.ObjectMeta{Name: "data"},
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
				},
			}},
			PersistentVolumeClaimRetentionPolicy: &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: deleted, WhenScaled: deleted},
		},
	}, metav1.CreateOptions{}))
	w.hasMembers(t, "v1", 3)
	first := must[*appsv1.StatefulSet](t)(sets.Get(t.Context(), "member", metav1.GetOptions{})).Status.CurrentRevision
	patch := func(format string, args ...any) {
		t.Helper()
		must[*appsv1.StatefulSet](t)(sets.Patch(t.Context(), "member", "application/strategic-merge-patch+json", fmt.Appendf(nil, format, args...), metav1.PatchOptions{}))
	}
	setImage := func(image string) {
		t.Helper()
		patch(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image)
		w.hasMembers(t, image, 3)
	}
	setImage("v2")
	setImage("v1")
	if set := must[*appsv1.StatefulSet](t)(sets.Get(t.Context(), "member", metav1.GetOptions{})); set.Status.CurrentRevision != first {
		t.Errorf("rolled back to revision %s, want %s", set.Status.CurrentRevision, first)
	}
	patch(`{"spec":{"replicas":1}}`)
	w.hasMembers(t, "v1", 1)
	if err := sets.Delete(t.Context(), "member", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.hasClaims(t, 0)
}

// hasMembers waits until the set is complete, with a claim for each pod.
func (w world) hasMembers(t *testing.T, image string, want int32) {
	t.Helper()
	eventually(t, "the StatefulSet is complete", func() error {
		set, err := w.admin.AppsV1().StatefulSets("default").Get(t.Context(), "member", metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := set.Status
		if s.ObservedGeneration != set.Generation || s.Replicas != want || s.UpdatedReplicas != want || s.AvailableReplicas != want || s.CurrentRevision != s.UpdateRevision {
			return fmt.Errorf("status %+v", s)
		}
		for i := range want {
			pod, err := w.admin.CoreV1().Pods("default").Get(t.Context(), fmt.Sprintf("member-%d", i), metav1.GetOptions{})
			if err != nil {
				return err
			}
			if pod.Spec.Containers[0].Image != image {
				return fmt.Errorf("%s has image %s", pod.Name, pod.Spec.Containers[0].Image)
			}
		}
		return nil
	})
	w.hasClaims(t, int(want))
}

func (w world) hasClaims(t *testing.T, want int) {
	t.Helper()
	eventually(t, "each member has a claim", func() error {
		claims, err := w.admin.CoreV1().PersistentVolumeClaims("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=member"})
		if err == nil && len(claims.Items) != want {
			err = fmt.Errorf("%d claims, want %d", len(claims.Items), want)
		}
		return err
	})
}
