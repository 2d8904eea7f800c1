package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// errMounted says that something is still mounted in a tree that was to be removed.
var errMounted = errors.New("is still a mount point")

// removeTree deletes path and all beneath it without ever leaving the tree: symlinks are deleted, not followed, and a mount of
// whatever filesystem stops it with an error. Directories are held open by descriptor, so swapping one for a symlink or a mount
// meanwhile does not lead it astray.
func removeTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	return removeAt(parent, filepath.Base(path), path)
}

// removeAt deletes the entry name of the directory parent; path is its full name for messages.
func removeAt(parent int, name, path string) error {
	var stat unix.Statx_t
	err := unix.Statx(parent, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &stat)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return fmt.Errorf("%s %w", path, errMounted)
	}
	flags := 0
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := removeChildren(parent, name, path); err != nil {
			return err
		}
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(parent, name, flags); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlinkat", Path: path, Err: err}
	}
	return nil
}

// removeChildren empties the directory name of parent. RESOLVE_NO_XDEV makes the kernel refuse a mount that appeared meanwhile.
func removeChildren(parent int, name, path string) error {
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	var failed []error
	for _, child := range names {
		failed = append(failed, removeAt(fd, child, filepath.Join(path, child)))
	}
	return errors.Join(failed...)
}
