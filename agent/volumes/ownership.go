package volumes

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// Permissions that fsGroup adds, as kubelet's (kubernetes/pkg/volume/volume_linux.go): the group may do what the owner may,
// and new files in directories belong to the group as well.
const (
	groupReadWrite = fs.FileMode(0o660)
	groupRead      = fs.FileMode(0o440)
	groupEnter     = fs.ModeSetgid | 0o110
)

// giveToGroup makes everything in dir belong to group and accessible to it. A path that changes meanwhile, or a symlink in it,
// cannot lead outside of dir.
func giveToGroup(dir string, group int64, readOnly bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	mask := groupReadWrite
	if readOnly {
		mask = groupRead
	}
	return giveEntry(root, ".", group, mask)
}

// giveEntry changes what lies beneath name before name itself, so that a root with the right owner means that all is done.
func giveEntry(root *os.Root, name string, group int64, mask fs.FileMode) error {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed []error
	if info.IsDir() {
		entries, err := fs.ReadDir(root.FS(), name)
		failed = append(failed, err)
		for _, entry := range entries {
			failed = append(failed, giveEntry(root, path.Join(name, entry.Name()), group, mask))
		}
		mask |= groupEnter
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if err := root.Lchown(name, -1, int(group)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil // chmod would reach through to the file behind it
	}
	return root.Chmod(name, info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)|mask)
}

// belongsToGroup reports whether the root of dir has the owner and permissions that giveToGroup gives, which fsGroupChangePolicy
// OnRootMismatch takes as a sign that everything in it has.
func belongsToGroup(dir string, group int64) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	want := groupReadWrite | 0o110
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int64(stat.Gid) == group && info.IsDir() && info.Mode()&want == want && info.Mode()&fs.ModeSetgid != 0
}

// fsGroup is the group that the pod's volumes are to belong to, or nil.
func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// changesOnMismatchOnly reports whether the pod's fsGroupChangePolicy is OnRootMismatch. It is for volumes that outlive the pod.
func changesOnMismatchOnly(pod *corev1.Pod) bool {
	sc := pod.Spec.SecurityContext
	return sc != nil && sc.FSGroupChangePolicy != nil && *sc.FSGroupChangePolicy == corev1.FSGroupChangeOnRootMismatch
}
