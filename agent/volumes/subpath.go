package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/volume/util/subpath"
	"k8s.io/mount-utils"
)

// SubPath returns the path to bind into a container for a volumeMount with a subPath (a subPathExpr is expanded by the
// caller, who knows the environment): a mount of its own of the file or directory, so that nothing the pod does to symlinks in the
// volume can redirect it. A missing directory is created. Unmount takes the mount away; cleanup does nothing today, and is to be
// called once the container has started or failed. Messages do not tell about files outside of the volume.
func (m *Manager) SubPath(ctx context.Context, pod *corev1.Pod, container *corev1.Container, volumeMount corev1.VolumeMount) (hostPath string, cleanup func(), err error) {
	cleanup = func() {}
	sub := volumeMount.SubPath
	if err := checkUID(pod.UID); err != nil {
		return "", cleanup, err
	}
	switch {
	case sub == "":
		return "", cleanup, fmt.Errorf("volumeMount %q has no subPath", volumeMount.Name)
	case filepath.IsAbs(sub):
		return "", cleanup, fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	case slices.Contains(strings.Split(sub, "/"), ".."):
		return "", cleanup, fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	p := m.lock(pod.UID)
	defer p.mu.Unlock()
	made, ok := p.made[volumeMount.Name]
	if !ok {
		return "", cleanup, fmt.Errorf("cannot find volume %q to mount into container %q", volumeMount.Name, container.Name)
	}
	safe := subpath.New(binder{&mount.Mounter{}})
	path := filepath.Join(made.HostPath, sub)
	if err := createSubPath(safe, made.HostPath, sub); err != nil {
		m.cfg.Log.Warn("cannot create subPath", "pod", pod.Namespace+"/"+pod.Name, "volume", volumeMount.Name, "err", err)
		return "", cleanup, fmt.Errorf("failed to create subPath directory for volumeMount %q of container %q", volumeMount.Name, container.Name)
	}
	hostPath, done, err := safe.PrepareSafeSubpath(subpath.Subpath{
		VolumeMountIndex: mountIndex(container, volumeMount),
		Path:             path,
		VolumeName:       volumeMount.Name,
		VolumePath:       made.HostPath,
		PodDir:           m.PodDir(pod.UID),
		ContainerName:    container.Name,
	})
	if done != nil {
		cleanup = done
	}
	if err != nil {
		m.cfg.Log.Warn("cannot prepare subPath", "pod", pod.Namespace+"/"+pod.Name, "volume", volumeMount.Name, "err", err)
		return "", cleanup, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", volumeMount.Name, container.Name)
	}
	return hostPath, cleanup, ctx.Err()
}

// createSubPath creates a missing subPath as a directory with the mode of the volume.
func createSubPath(safe subpath.Interface, volume, sub string) error {
	if _, err := os.Stat(filepath.Join(volume, sub)); !errors.Is(err, os.ErrNotExist) {
		return nil // what is wrong with it, if anything, is found when it is opened
	}
	info, err := os.Stat(volume)
	if err != nil {
		return err
	}
	err = safe.SafeMakeDir(sub, volume, info.Mode())
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// mountIndex is the position of a volumeMount in its container; it names the subPath's mount point.
func mountIndex(container *corev1.Container, volumeMount corev1.VolumeMount) int {
	return slices.IndexFunc(container.VolumeMounts, func(other corev1.VolumeMount) bool {
		return other.MountPath == volumeMount.MountPath
	})
}

// binder makes and removes bind mounts by system call; mount.Mounter, which does the rest, would start /bin/mount for each.
type binder struct{ *mount.Mounter }

// MountSensitiveWithoutSystemdWithMountFlags binds source to target. Only that is asked of it here.
func (b binder) MountSensitiveWithoutSystemdWithMountFlags(source, target, fstype string, options, sensitive, flags []string) error {
	if fstype != "" || !slices.Equal(options, []string{"bind"}) || len(sensitive) > 0 {
		return fmt.Errorf("mount %s at %s: not a plain bind mount", source, target)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: target, Err: err}
	}
	return nil
}

// Unmount unmounts target.
func (b binder) Unmount(target string) error {
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return nil
}

// IsMountPoint reports whether something is mounted at path.
func (b binder) IsMountPoint(path string) (bool, error) { return isMountPoint(path) }
