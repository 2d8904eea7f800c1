package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// mountEmptyDir makes an emptyDir volume. On disk, sizeLimit is not enforced here: kubelet, too, only evicts a pod that exceeds it.
func (m *Manager) mountEmptyDir(pod *corev1.Pod, v *corev1.Volume) (Mount, error) {
	dir := m.volumeDir(pod.UID, "empty-dir", v.Name)
	mount := Mount{HostPath: dir}
	switch medium := v.EmptyDir.Medium; medium {
	case corev1.StorageMediumDefault:
		return mount, m.makeDiskDir(pod, dir)
	case corev1.StorageMediumMemory:
		return mount, m.makeMemoryDir(pod, dir, v.EmptyDir.SizeLimit)
	default:
		return Mount{}, unsupported("volumes[name=%s].emptyDir.medium %q", v.Name, medium)
	}
}

// makeDiskDir creates a directory that everybody may write to, with its final owner and mode from the moment it appears.
func (m *Manager) makeDiskDir(pod *corev1.Pod, dir string) error {
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	draft := dir + ".new" // volume names have no dots, so this is none
	if err := removeTree(draft); err != nil {
		return err
	}
	if err := os.Mkdir(draft, 0o777); err != nil {
		return err
	}
	if err := makeWorldWritable(pod, draft, 0o777); err != nil {
		return err
	}
	return os.Rename(draft, dir)
}

func (m *Manager) makeMemoryDir(pod *corev1.Pod, dir string, sizeLimit *resource.Quantity) error {
	if _, err := os.Lstat(dir); err == nil {
		if mounted, err := isMountPoint(dir); err != nil || mounted {
			return err
		}
	}
	if err := ensureTmpfs(dir, memorySize(pod, sizeLimit, m.cfg.Allocatable())); err != nil {
		return err
	}
	return makeWorldWritable(pod, dir, 0o777|os.ModeSticky)
}

// makeWorldWritable sets the mode of a new volume whatever the umask, and gives it to the pod's fsGroup.
func makeWorldWritable(pod *corev1.Pod, dir string, mode os.FileMode) error {
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	group := fsGroup(pod)
	if group == nil {
		return nil
	}
	if err := giveToGroup(dir, *group, false); err != nil {
		return fmt.Errorf("give to fsGroup %d: %w", *group, err)
	}
	return nil
}

// memorySize is how many bytes a memory volume of pod may hold: the least of its sizeLimit, the pod's memory limit and what the
// node can allocate; 0 if none of them is known.
func memorySize(pod *corev1.Pod, sizeLimit *resource.Quantity, allocatable corev1.ResourceList) int64 {
	size := int64(0)
	lower := func(limit int64) {
		if limit > 0 && (size == 0 || limit < size) {
			size = limit
		}
	}
	lower(allocatable.Memory().Value())
	lower(podMemoryLimit(pod))
	if sizeLimit != nil {
		lower(sizeLimit.Value())
	}
	return size
}

// podMemoryLimit is the memory limit of the pod's cgroup in bytes, or 0 if some container has none.
func podMemoryLimit(pod *corev1.Pod) int64 {
	if pod.Spec.Resources != nil && !pod.Spec.Resources.Limits.Memory().IsZero() {
		return pod.Spec.Resources.Limits.Memory().Value()
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if containers[i].Resources.Limits.Memory().IsZero() {
				return 0
			}
		}
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	return limits.Memory().Value()
}
