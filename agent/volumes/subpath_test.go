package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func (n *node) subPath(pod *corev1.Pod, sub string) (string, error) {
	pod = pod.DeepCopy()
	pod.Spec.Containers[0].VolumeMounts[0].SubPath = sub
	path, cleanup, err := n.SubPath(n.t.Context(), pod, &pod.Spec.Containers[0], pod.Spec.Containers[0].VolumeMounts[0])
	cleanup()
	return path, err
}

func TestSubPathsAreMountsOfTheirOwn(t *testing.T) {
	n := newNode(t, configMap("conf", map[string]string{"key": "value"}))
	for title, test := range map[string]struct {
		volume corev1.Volume
		sub    string
		isDir  bool
	}{
		"a directory that is created": {emptyDir("", ""), "new/deep", true},
		"a key of a ConfigMap":        {configMapVolume("conf"), "key", false},
	} {
		t.Run(title, func(t *testing.T) {
			pod := podWith(test.volume)
			volume := n.mount(pod)["v"].HostPath
			for range 2 {
				path, err := n.subPath(pod, test.sub)
				if err != nil {
					t.Fatal(err)
				}
				if want := filepath.Join(n.PodDir(pod.UID), "volume-subpaths/v/app/0"); path != want {
					t.Errorf("got %s, want %s", path, want)
				}
				if mounted, err := isMountPoint(path); err != nil || !mounted {
					t.Errorf("mounted %t, %v", mounted, err)
				}
				if info, err := os.Stat(path); err != nil || info.IsDir() != test.isDir {
					t.Errorf("got %v, %v", info, err)
				}
			}
			if info, err := os.Stat(filepath.Join(volume, test.sub)); err != nil || test.isDir && info.Mode().Perm() != 0o777 {
				t.Errorf("the subPath has mode %v, %v; want that of the volume", info, err)
			}
			if err := n.Unmount(t.Context(), pod.UID); err != nil {
				t.Error(err)
			}
			exist(t, n.PodDir(pod.UID), false)
		})
	}
}

func TestSubPathsCannotLeaveTheVolume(t *testing.T) {
	for title, test := range map[string]struct {
		link, sub, want string
	}{
		"a symlink to the root":                   {"/", "link", `failed to prepare subPath for volumeMount "v" of container "app"`},
		"through a symlink":                       {"/", "link/etc", `failed to prepare subPath for volumeMount "v" of container "app"`},
		"a directory to create through a symlink": {"/", "link/tmp/weft-must-not-exist", `failed to create subPath directory for volumeMount "v" of container "app"`},
		"a relative symlink":                      {"../../../..", "link", `failed to prepare subPath for volumeMount "v" of container "app"`},
		"a step back":                             {".", "a/../../b", "unable to provision SubPath `a/../../b`: must not contain '..'"},
		"an absolute path":                        {".", "/etc", "error SubPath `/etc` must not be an absolute path"},
	} {
		t.Run(title, func(t *testing.T) {
			n := newNode(t)
			pod := podWith(emptyDir("", ""))
			if err := os.Symlink(test.link, filepath.Join(n.mount(pod)["v"].HostPath, "link")); err != nil {
				t.Fatal(err)
			}
			path, err := n.subPath(pod, test.sub)
			if err == nil || err.Error() != test.want {
				t.Errorf("got %q, %v", path, err)
			}
			exist(t, "/tmp/weft-must-not-exist", false)
		})
	}
}

func TestASubPathOfAVolumeThatIsNotMountedIsAnError(t *testing.T) {
	n := newNode(t)
	if _, err := n.subPath(podWith(emptyDir("", "")), "x"); err == nil || !strings.Contains(err.Error(), `cannot find volume "v"`) {
		t.Errorf("got %v", err)
	}
}
