package volumes

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func exist(t *testing.T, path string, want bool) {
	t.Helper()
	_, err := os.Lstat(path)
	if got := !errors.Is(err, os.ErrNotExist); got != want {
		t.Errorf("%s exists: %t, want %t", path, got, want)
	}
}

func TestUnmountLeavesNothingAndCanBeRepeated(t *testing.T) {
	n := newNode(t, configMap("conf", map[string]string{"a": "1"}), secret("conf", nil))
	pod := podWith(
		emptyDir("Memory", ""),
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf"}}},
		corev1.Volume{Name: "c", VolumeSource: configMapVolume("conf").VolumeSource},
	)
	n.mount(pod)
	if uids, err := n.Orphans(); err != nil || !slices.Equal(uids, []types.UID{"11-22"}) {
		t.Errorf("orphans are %v, %v", uids, err)
	}
	for range 2 {
		if err := n.Unmount(t.Context(), pod.UID); err != nil {
			t.Fatal(err)
		}
	}
	exist(t, n.PodDir(pod.UID), false)
	if uids, err := n.Orphans(); err != nil || len(uids) != 0 {
		t.Errorf("orphans are %v, %v", uids, err)
	}
	if infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir)); err != nil || len(infos) != 0 {
		t.Errorf("mounts are left: %v, %v", infos, err)
	}
}

func TestANewAgentUnmountsThePodsOfTheOld(t *testing.T) {
	n := newNode(t, secret("conf", map[string]string{"k": "v"}))
	pod := podWith(volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "conf"}}))
	n.mount(pod)
	n.stop()
	fresh, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	uids, err := fresh.Orphans()
	if err != nil || len(uids) != 1 {
		t.Fatalf("orphans are %v, %v", uids, err)
	}
	if err := fresh.Unmount(t.Context(), uids[0]); err != nil {
		t.Fatal(err)
	}
	exist(t, n.PodDir(pod.UID), false)
}

func TestUnmountFollowsNoSymlinkAndDeletesNothingThatIsMounted(t *testing.T) {
	n := newNode(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "precious"), "data")
	pod := podWith(emptyDir("", ""))
	dir := n.mount(pod)["v"].HostPath
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	mountpoint := filepath.Join(dir, "name with space")
	if err := os.Mkdir(mountpoint, 0o755); err != nil {
		t.Fatal(err)
	}
	bind(t, outside, mountpoint)
	bind(t, outside, mountpoint)
	if err := n.Unmount(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	exist(t, filepath.Join(outside, "precious"), true)
	exist(t, n.PodDir(pod.UID), false)
}

func TestABusyMountFailsUnmountAndKeepsItsData(t *testing.T) {
	n := newNode(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "precious"), "data")
	pod := podWith(emptyDir("", ""))
	mountpoint := filepath.Join(n.mount(pod)["v"].HostPath, "busy")
	if err := os.Mkdir(mountpoint, 0o755); err != nil {
		t.Fatal(err)
	}
	bind(t, outside, mountpoint)
	file, err := os.Open(filepath.Join(mountpoint, "precious"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Unmount(t.Context(), pod.UID); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v, want EBUSY", err)
	}
	exist(t, filepath.Join(outside, "precious"), true)
	file.Close()
	if err := n.Unmount(t.Context(), pod.UID); err != nil {
		t.Errorf("once it is free: %v", err)
	}
	exist(t, filepath.Join(outside, "precious"), true)
}

func TestRemoveTreeStopsAtABindMountOfTheSameFilesystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("bind mounts need root")
	}
	dir := t.TempDir()
	for _, sub := range []string{"outside", "tree/a/mountpoint", "tree/b"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "outside/precious"), "data")
	write(t, filepath.Join(dir, "tree/b/file"), "")
	bind(t, filepath.Join(dir, "outside"), filepath.Join(dir, "tree/a/mountpoint"))
	if err := removeTree(filepath.Join(dir, "tree")); !errors.Is(err, errMounted) {
		t.Errorf("got %v", err)
	}
	exist(t, filepath.Join(dir, "outside/precious"), true)
	exist(t, filepath.Join(dir, "tree/b"), false)
}

func TestUIDsThatAreNoNamesAreRefused(t *testing.T) {
	n := newNode(t)
	for _, uid := range []types.UID{"", ".", "..", "a/b", "../x"} {
		if err := n.Unmount(t.Context(), uid); err == nil {
			t.Errorf("%q was accepted", uid)
		}
	}
	exist(t, n.dir, true)
}

func TestSharedDirIsSharedOnceAndRemovable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := filepath.Join(t.TempDir(), "kubelet")
	t.Cleanup(func() { _ = RemoveSharedDir(dir) })
	mounts := func() []*mountinfo.Info {
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			t.Fatal(err)
		}
		return infos
	}
	for range 2 {
		if err := EnsureSharedDir(dir); err != nil {
			t.Fatal(err)
		}
		if infos := mounts(); len(infos) != 1 || infos[0].Optional == "" {
			t.Fatalf("mounts are %v", infos)
		}
	}
	inner := filepath.Join(dir, "inner")
	if err := ensureTmpfs(inner, 1<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveSharedDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if infos := mounts(); len(infos) != 0 {
		t.Errorf("mounts are left: %v", infos)
	}
	exist(t, inner, true)
}

func TestNewRefusesAConfigWithHoles(t *testing.T) {
	for _, cfg := range []Config{{KubeletDir: "relative"}, {KubeletDir: t.TempDir(), Log: slog.Default()}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
