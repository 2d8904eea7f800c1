package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// EnsureSharedDir creates dir, makes it a mount of its own and marks that as shared, so that mounts made beneath it reach
// containers and, with mountPropagation Bidirectional, come back from them. It is idempotent; RemoveSharedDir undoes it.
func EnsureSharedDir(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", dir, err)
	}
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(resolved))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if len(infos) == 0 {
		if err := unix.Mount(resolved, resolved, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", dir, err)
		}
	} else if strings.Contains(infos[0].Optional, "shared:") {
		return nil
	}
	if err := unix.Mount("", resolved, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s shared: %w", dir, err)
	}
	return nil
}

// RemoveSharedDir unmounts dir and everything beneath it, and leaves its files. It is idempotent.
func RemoveSharedDir(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("resolve %s: %w", dir, err)
	}
	return unmountAll(resolved, true)
}

// unmountAll unmounts everything beneath dir and, if alsoSelf, dir itself, the youngest mount first. dir is free of symlinks.
func unmountAll(dir string, alsoSelf bool) error {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	var failed []error
	for _, info := range slices.Backward(infos) { // mountinfo lists a mount after the one that it stands on
		if info.Mountpoint == dir && !alsoSelf {
			continue
		}
		err := unix.Unmount(info.Mountpoint, unix.UMOUNT_NOFOLLOW)
		// A mount in a shared tree goes with its twin; then there is nothing left to unmount (EINVAL, ENOENT).
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			failed = append(failed, fmt.Errorf("unmount %s: %w", info.Mountpoint, err))
		}
	}
	return errors.Join(failed...)
}

// isMountPoint reports whether something is mounted exactly at path, a symlink at its end not followed.
func isMountPoint(path string) (bool, error) {
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &stat); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// ensureTmpfs mounts a tmpfs of at most size bytes (0 = the kernel's default, half of the memory) at dir unless there is a mount
// already. Its pages are never swapped out, which kernels can do since 6.4; older ones get it without that.
func ensureTmpfs(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if mounted, err := isMountPoint(dir); err != nil || mounted {
		return err
	}
	options := []string{"noswap"}
	if size > 0 {
		options = append(options, "size="+strconv.FormatInt(size, 10))
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, strings.Join(options, ","))
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, strings.Join(options[1:], ","))
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return nil
}
