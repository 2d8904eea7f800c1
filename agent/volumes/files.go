package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"
)

// Names that the atomic writer uses within a volume (kubernetes/pkg/volume/util/atomic_writer.go).
const (
	dataLink     = "..data"
	dataLinkTemp = "..data_tmp"
	reserved     = ".."
)

// makePodDirs creates the directories that all volumes of a pod lie in.
func (m *Manager) makePodDirs(uid types.UID) error {
	if err := os.MkdirAll(filepath.Join(m.PodDir(uid), "volumes"), 0o750); err != nil {
		return fmt.Errorf("create directory of pod: %w", err)
	}
	return nil
}

// volumeDir is where a volume of a kind lies, as kubelet lays it out.
func (m *Manager) volumeDir(uid types.UID, plugin, name string) string {
	return filepath.Join(m.PodDir(uid), "volumes", "kubernetes.io~"+plugin, name)
}

// mountFiles makes a volume of API objects or brings it up to date. ConfigMaps lie on disk, all others in memory.
func (m *Manager) mountFiles(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (Mount, error) {
	files, err := m.collect(ctx, pod, v)
	if err != nil {
		return Mount{}, err
	}
	plugin, inMemory := "projected", true
	switch {
	case v.ConfigMap != nil:
		plugin, inMemory = "configmap", false
	case v.Secret != nil:
		plugin = "secret"
	case v.DownwardAPI != nil:
		plugin = "downward-api"
	}
	dir := m.volumeDir(pod.UID, plugin, v.Name)
	if err := m.makeEmpty(pod, dir, inMemory); err != nil {
		return Mount{}, err
	}
	if err := volumeutil.MakeNestedMountpoints(v.Name, dir, *pod); err != nil {
		return Mount{}, err
	}
	if err := writeFiles(dir, pod, v.Name, files); err != nil {
		return Mount{}, err
	}
	return Mount{HostPath: dir, ReadOnly: true}, nil
}

// makeEmpty creates the directory of a volume of API objects if it is not there.
func (m *Manager) makeEmpty(pod *corev1.Pod, dir string, inMemory bool) error {
	if inMemory {
		if err := ensureTmpfs(dir, memorySize(pod, nil, m.cfg.Allocatable())); err != nil {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return os.Chmod(dir, 0o777) // whatever the umask
}

// writeFiles replaces the content of a volume in one step, as seen by its readers.
func writeFiles(dir string, pod *corev1.Pod, volume string, files payload) error {
	if err := clearLeftovers(dir); err != nil {
		return err
	}
	writer, err := volumeutil.NewAtomicWriter(dir, fmt.Sprintf("pod %s/%s volume %s", pod.Namespace, pod.Name, volume))
	if err != nil {
		return err
	}
	return writer.Write(files, func(string) error {
		if group := fsGroup(pod); group != nil {
			return giveToGroup(dir, *group, true)
		}
		return nil
	})
}

// clearLeftovers removes what a write that was killed halfway has left in a volume. Without that, the next one would fail.
func clearLeftovers(dir string) error {
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, reserved) || name == dataLink || name == current {
			continue
		}
		if name != dataLinkTemp && !entry.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
