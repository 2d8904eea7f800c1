package reclaim

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// world is a node with images of 10 bytes each on a disk of 100, and pods.
type world struct {
	images  map[string]bool
	other   int64 // bytes of the disk that are not images
	memory  map[types.UID]int64
	pods    []*corev1.Pod
	running []*runtimeapi.Container
}

func (w *world) used() int64 { return w.other + 10*int64(len(w.images)) }

func (w *world) Pods() []*corev1.Pod { return w.pods }

func (w *world) Evict(uid types.UID, _ string) {
	for _, pod := range w.pods {
		if pod.UID == uid {
			pod.Status.Phase, pod.Status.Reason = corev1.PodFailed, "Evicted"
			w.memory[uid] = 0
		}
	}
}

func (w *world) ImageStatus(_ context.Context, name string) (*runtimeapi.Image, error) {
	if !w.images[name] {
		return nil, nil
	}
	return &runtimeapi.Image{Id: name}, nil
}

func (w *world) ListImages(context.Context) ([]*runtimeapi.Image, error) {
	var list []*runtimeapi.Image
	for id := range w.images {
		list = append(list, &runtimeapi.Image{Id: id, Size: 10, Pinned: strings.HasPrefix(id, "pinned")})
	}
	return list, nil
}

func (w *world) RemoveImage(_ context.Context, id string) error {
	delete(w.images, id)
	return nil
}

func (w *world) Containers(context.Context, map[string]string) ([]*runtimeapi.Container, error) {
	return w.running, nil
}

func (w *world) reclaimer(t *testing.T) *Reclaimer {
	t.Helper()
	r, err := New(Config{
		Pressure: func() Pressure {
			total := int64(0)
			for _, bytes := range w.memory {
				total += bytes
			}
			return Pressure{Memory: total > 100, Disk: w.used() > 90}
		},
		Disk: func() (int64, int64, error) { return w.used(), 100, nil },
		Usage: func(context.Context, bool) (map[types.UID]Usage, error) {
			usage := map[types.UID]Usage{}
			for uid, bytes := range w.memory {
				usage[uid] = Usage{Memory: bytes, Disk: bytes}
			}
			return usage, nil
		},
		Images: w, Containers: w, Pods: w, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) left() string {
	left := slices.Sorted(maps.Keys(w.images))
	for _, pod := range w.pods {
		if pod.Status.Phase != corev1.PodFailed {
			left = append(left, pod.Name)
		}
	}
	return strings.Join(left, " ")
}

func pod(name, imageVolume string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	if imageVolume != "" {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: imageVolume}}}}
	}
	return p
}

func imagesOf(names string) map[string]bool {
	set := map[string]bool{}
	for name := range strings.FieldsSeq(names) {
		set[name] = true
	}
	return set
}

func TestWhatIsReclaimed(t *testing.T) {
	for name, test := range map[string]struct {
		world world
		want  string // images and pods that remain
	}{
		"nothing while there is room": {
			world{images: imagesOf("a b c"), other: 50, pods: []*corev1.Pod{pod("web", "")}}, "a b c web"},
		"unused images of a filling disk, as many as it takes": {
			world{images: imagesOf("a b c"), other: 57}, "b c"},
		"every unused image under pressure, but no pod if that is enough": {
			world{images: imagesOf("a b c pinned"), other: 55, running: []*runtimeapi.Container{{ImageRef: "b"}},
				pods: []*corev1.Pod{pod("web", "c")}, memory: map[types.UID]int64{"web": 1}}, "b c pinned web"},
		"pods if that is not enough": {
			world{images: imagesOf("a"), other: 95, pods: []*corev1.Pod{pod("large", ""), pod("small", "")},
				memory: map[types.UID]int64{"large": 20, "small": 10}}, ""},
		"one pod when it frees the memory": {
			world{pods: []*corev1.Pod{pod("large", ""), pod("small", "")}, memory: map[types.UID]int64{"large": 80, "small": 30}}, "small"},
	} {
		t.Run(name, func(t *testing.T) {
			w := test.world
			r := w.reclaimer(t)
			for i := range 4 {
				err := r.pass(t.Context(), noon.Add(time.Duration(i)*minImageAge))
				if err != nil && !strings.Contains(err.Error(), "no pod can be evicted") {
					t.Fatal(err)
				}
			}
			if got := w.left(); got != test.want {
				t.Errorf("left %q, want %q", got, test.want)
			}
		})
	}
}

func TestTheNextPodIsEvictedOnlyOnceTheFirstHasEnded(t *testing.T) {
	w := &world{pods: []*corev1.Pod{pod("a", ""), pod("b", "")}, memory: map[types.UID]int64{"a": 200, "b": 200}}
	r := w.reclaimer(t)
	r.cfg.Pods = slow{w}
	for i := range 3 {
		if err := r.pass(t.Context(), noon.Add(time.Duration(i)*interval)); err != nil {
			t.Fatal(err)
		}
	}
	if r.evicted != "a" {
		t.Errorf("evicted %s while a is still ending", r.evicted)
	}
	w.Evict("a", "")
	if err := r.pass(t.Context(), noon.Add(3*interval)); err != nil || r.evicted != "b" {
		t.Errorf("evicted %s, %v; want b once a has ended", r.evicted, err)
	}
}

// slow takes its time to evict.
type slow struct{ *world }

func (slow) Evict(types.UID, string) {}

func TestSizeOfCountsOneFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sizeOf(dir); got < 1<<20 || got > 2<<20 {
		t.Errorf("%d bytes", got)
	}
	if got := sizeOf(filepath.Join(dir, "gone")); got != 0 {
		t.Errorf("%d bytes of a directory that is gone", got)
	}
}
