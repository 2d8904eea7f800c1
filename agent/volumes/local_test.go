package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"weft.dev/weft/controlplane/api"
)

// dynamic is a bound claim and its volume, as the control plane makes it for node n1 with its directory in dirs.
func dynamic(dirs *LocalDirs) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	return claimed(corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(dirs.dir, "pv")}},
		func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.UID = "pv-uid"
			pv.Labels = map[string]string{api.NodeLabel: "n1"}
			pv.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": api.LocalVolumeProvisioner}
			pv.Finalizers = []string{"kubernetes.io/pv-protection", api.LocalVolumeFinalizer}
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
			pv.Status.Phase = corev1.VolumeBound
		})
}

func (n *node) add(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
	n.t.Helper()
	_, err := n.client.CoreV1().PersistentVolumeClaims("default").Create(n.t.Context(), claim, metav1.CreateOptions{})
	_, err2 := n.client.CoreV1().PersistentVolumes().Create(n.t.Context(), pv, metav1.CreateOptions{})
	if err := errors.Join(err, err2); err != nil {
		n.t.Fatal(err)
	}
}

func TestADynamicLocalVolumeIsMadeAtItsFirstMountAndKept(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	n := newNode(t)
	claim, pv := dynamic(n.local)
	n.add(claim, pv)
	// What a kill while the directory was being made leaves.
	if err := os.MkdirAll(filepath.Join(n.local.dir, ".new", "leftover"), 0o700); err != nil {
		t.Fatal(err)
	}
	pod := podWith(claimVolume(false))
	path := n.mount(pod)["v"].HostPath
	if path != pv.Spec.Local.Path {
		t.Errorf("mounted from %s", path)
	}
	if got := describe(t, path); got != "drwxrwxrwx 0:0" {
		t.Errorf("the directory is %s", got)
	}
	if got := describe(t, n.local.dir); got != "drwx------ 0:0" {
		t.Errorf("the directory of all volumes is %s", got)
	}
	if got := tree(t, path); got != "" {
		t.Errorf("it is not empty: %s", got)
	}
	write(t, filepath.Join(path, "data"), "precious")
	if err := n.Unmount(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	pod.UID = "next"
	n.mount(pod)
	if got := tree(t, path); got != "-rw------- 0:0 data=precious" {
		t.Errorf("the next pod finds %q", got)
	}
}

func TestADirectoryElsewhereIsNotMadeForAVolume(t *testing.T) {
	n := newNode(t)
	claim, pv := dynamic(n.local)
	elsewhere := filepath.Join(t.TempDir(), "pv")
	pv.Spec.Local.Path = elsewhere
	n.add(claim, pv)
	if got := n.mountError(podWith(claimVolume(false))); !strings.Contains(got, elsewhere+" is not this node's directory for it") {
		t.Errorf("got %s", got)
	}
	if _, err := os.Stat(elsewhere); err == nil {
		t.Error("it was made")
	}
}

func TestPodsThatMountAVolumeAtTheSameTimeGetOneDirectory(t *testing.T) {
	n := newNode(t)
	claim, pv := dynamic(n.local)
	n.add(claim, pv)
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			pod := podWith(claimVolume(false))
			pod.Name = fmt.Sprint("web-", i)
			pod.UID = types.UID(pod.Name)
			mounts, err := n.Mount(context.Background(), pod)
			if err != nil {
				t.Error(err)
				return
			}
			file := filepath.Join(mounts["v"].HostPath, pod.Name)
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	entries, err := os.ReadDir(pv.Spec.Local.Path)
	if err != nil || len(entries) != 8 {
		t.Errorf("%d files, %v", len(entries), err)
	}
}

func TestIsUnwanted(t *testing.T) {
	dirs, err := NewLocalDirs("/volumes")
	if err != nil {
		t.Fatal(err)
	}
	deleting := func(pv *corev1.PersistentVolume) { pv.DeletionTimestamp = ptr(metav1.Now()) }
	released := func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }
	for title, test := range map[string]struct {
		edits []func(*corev1.PersistentVolume)
		want  bool
	}{
		"in use":                               {nil, false},
		"released, the control plane may wait": {[]func(*corev1.PersistentVolume){released}, false},
		"released and being deleted":           {[]func(*corev1.PersistentVolume){released, deleting}, true},
		"deleted by hand while in use":         {[]func(*corev1.PersistentVolume){deleting}, false},
		"retained": {[]func(*corev1.PersistentVolume){released, deleting, func(pv *corev1.PersistentVolume) {
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		}}, false},
		"not held, so reported before": {[]func(*corev1.PersistentVolume){released, deleting, func(pv *corev1.PersistentVolume) {
			pv.Finalizers = pv.Finalizers[:1]
		}}, false},
		"a local volume that an administrator made": {[]func(*corev1.PersistentVolume){released, deleting, func(pv *corev1.PersistentVolume) {
			pv.Annotations = nil
		}}, false},
	} {
		t.Run(title, func(t *testing.T) {
			_, pv := dynamic(dirs)
			for _, edit := range test.edits {
				edit(pv)
			}
			if got := isUnwanted(pv); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// reclaim runs a Reclaimer over one volume.
func reclaim(t *testing.T, dirs *LocalDirs, pv *corev1.PersistentVolume) (*fake.Clientset, *record.FakeRecorder) {
	t.Helper()
	client := fake.NewClientset(pv)
	events := record.NewFakeRecorder(100)
	r, err := NewReclaimer(ReclaimerConfig{NodeName: "n1", Client: client, Dirs: dirs, Recorder: events, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = r.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return client, events
}

// unwanted is a volume with data that is to be deleted.
func unwanted(t *testing.T) (*LocalDirs, *corev1.PersistentVolume) {
	t.Helper()
	dirs, err := NewLocalDirs(filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	_, pv := dynamic(dirs)
	pv.Status.Phase = corev1.VolumeReleased
	pv.DeletionTimestamp = ptr(metav1.Now())
	if err := os.MkdirAll(filepath.Join(pv.Spec.Local.Path, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(pv.Spec.Local.Path, "deep", "file"), "old")
	return dirs, pv
}

func isHeld(t *testing.T, client *fake.Clientset) bool {
	pv, err := client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(pv.Finalizers, api.LocalVolumeFinalizer)
}

func TestDataGoesBeforeTheFinalizer(t *testing.T) {
	dirs, pv := unwanted(t)
	client, _ := reclaim(t, dirs, pv)
	eventually(t, "taking the finalizer off", func() bool { return !isHeld(t, client) })
	if _, err := os.Lstat(pv.Spec.Local.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	left, err := client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
	if err != nil || !slices.Equal(left.Finalizers, []string{"kubernetes.io/pv-protection"}) {
		t.Errorf("finalizers %v, %v", left.Finalizers, err)
	}
}

func TestAVolumeThatWasNeverMountedIsReportedDeleted(t *testing.T) {
	dirs, pv := unwanted(t)
	if err := os.RemoveAll(dirs.dir); err != nil {
		t.Fatal(err)
	}
	client, _ := reclaim(t, dirs, pv)
	eventually(t, "taking the finalizer off", func() bool { return !isHeld(t, client) })
}

func TestDataUnderAMountIsNotDeletedAndTheVolumeSaysSo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dirs, pv := unwanted(t)
	other := t.TempDir()
	write(t, filepath.Join(other, "precious"), "")
	bind(t, other, filepath.Join(pv.Spec.Local.Path, "deep"))
	client, events := reclaim(t, dirs, pv)
	select {
	case event := <-events.Events:
		if !strings.Contains(event, "VolumeFailedDelete") || !strings.Contains(event, "mount point") {
			t.Errorf("event %q", event)
		}
	case <-time.After(10 * time.Second):
		t.Error("no event")
	}
	if !isHeld(t, client) {
		t.Error("reported as deleted")
	}
	if _, err := os.Stat(filepath.Join(other, "precious")); err != nil {
		t.Error(err)
	}
}

func TestVolumesOfOtherNodesAreNotTouched(t *testing.T) {
	dirs, pv := unwanted(t)
	pv.Labels[api.NodeLabel] = "n2"
	client, _ := reclaim(t, dirs, pv)
	time.Sleep(200 * time.Millisecond)
	if !isHeld(t, client) {
		t.Error("reported as deleted")
	}
	if got := tree(t, pv.Spec.Local.Path); !strings.Contains(got, "old") {
		t.Error("deleted")
	}
}
