package volumes

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"pgregory.net/rapid"
)

// TestFilesEndUpAsIfMountedLast writes and deletes an optional ConfigMap at random while it is mounted. Whatever the order, the
// files are in the end those of a volume that is mounted only then.
func TestFilesEndUpAsIfMountedLast(t *testing.T) {
	n := newNode(t)
	core := n.client.CoreV1().ConfigMaps("default")
	pod := podWith(volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}, Optional: ptr(true)}}))
	dir := n.mount(pod)["v"].HostPath
	contents := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c.conf", "d"}), rapid.SampledFrom([]string{"", "1", "2\n"}))
	apply := func(rt *rapid.T, data map[string]string, exists bool) {
		var err error
		switch {
		case !exists:
			err = core.Delete(t.Context(), "conf", metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				err = nil
			}
		default:
			_, err = core.Update(t.Context(), configMap("conf", data), metav1.UpdateOptions{})
			if apierrors.IsNotFound(err) {
				_, err = core.Create(t.Context(), configMap("conf", data), metav1.CreateOptions{})
			}
		}
		if err != nil {
			rt.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		want := ""
		for range rapid.IntRange(1, 6).Draw(rt, "writes") {
			data, exists := contents.Draw(rt, "data"), rapid.IntRange(0, 3).Draw(rt, "exists") > 0
			apply(rt, data, exists)
			if !exists {
				data = nil
			}
			want = expected(data)
		}
		eventually(t, fmt.Sprintf("%q", want), func() bool { return tree(t, dir) == want })
	})
}

// expected is what tree prints for a ConfigMap.
func expected(data map[string]string) string {
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(data)) {
		lines = append(lines, fmt.Sprintf("-rw-r--r-- 0:0 %s=%s", key, data[key]))
	}
	return strings.Join(lines, "\n")
}

func TestChangedLabelsReachTheFilesThroughTheInformer(t *testing.T) {
	pod := podWith(volume(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
		{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}))
	n := newNode(t, pod)
	factory := informers.NewSharedInformerFactory(n.client, 0)
	n.cfg.Pods = factory.Core().V1().Pods().Informer()
	if err := n.watchPods(n.cfg.Pods); err != nil {
		t.Fatal(err)
	}
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())

	dir := n.mount(pod)["v"].HostPath
	changed := pod.DeepCopy()
	changed.Labels["app"] = "changed"
	if _, err := n.client.CoreV1().Pods("default").Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want := `-rw-r--r-- 0:0 labels=app="changed"`
	eventually(t, "the new label", func() bool { return tree(t, dir) == want })
	n.mount(pod) // by a worker that has not heard of the change
	if got := tree(t, dir); got != want {
		t.Errorf("the past came back: %s", got)
	}
}
