package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	corev1 "k8s.io/api/core/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"weft.dev/weft/controlplane/api"
)

// LocalDirs are the directories of this node's dynamic local volumes, one for each PersistentVolume and named as it is. They are
// made when a pod mounts the volume first, and deleted by a Reclaimer. It may be used concurrently.
type LocalDirs struct {
	dir string
	mu  sync.Mutex // while a directory is made
}

// NewLocalDirs returns the directories below dir, an absolute path. dir itself is made with the first of them.
func NewLocalDirs(dir string) (*LocalDirs, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("volumes: directory of local volumes %q is not an absolute path", dir)
	}
	return &LocalDirs{dir: filepath.Clean(dir)}, nil
}

// isDynamicLocal reports whether a PersistentVolume is a directory that this agent makes. All others are used as they are found.
func isDynamicLocal(pv *corev1.PersistentVolume) bool {
	return pv.Spec.Local != nil && pv.Annotations[volumehelpers.AnnDynamicallyProvisioned] == api.LocalVolumeProvisioner
}

// path returns where a volume's directory is, and refuses one that would be anywhere else than in its place on this node.
func (l *LocalDirs) path(pv *corev1.PersistentVolume) (string, error) {
	want := filepath.Join(l.dir, pv.Name)
	if filepath.Dir(want) != l.dir || pv.Spec.Local.Path != want {
		return "", fmt.Errorf("persistentvolume %q: spec.local.path: %s is not this node's directory for it, which is %s", pv.Name, pv.Spec.Local.Path, want)
	}
	return want, nil
}

// ensure makes the directory of a volume, empty and for everybody to write to, unless it is there. Nobody but root gets to it
// except through a mount.
func (l *LocalDirs) ensure(pv *corev1.PersistentVolume) error {
	path, err := l.path(pv)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	// It appears with its final mode, whatever the umask and even if this process is killed here.
	draft := filepath.Join(l.dir, ".new")
	if err := removeTree(draft); err != nil {
		return err
	}
	if err := os.Mkdir(draft, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(draft, 0o777); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return syncDir(l.dir)
}

// remove deletes the directory of a volume with all that is in it. When it returns nil, the directory does not come back even
// if the machine loses power.
func (l *LocalDirs) remove(pv *corev1.PersistentVolume) error {
	path, err := l.path(pv)
	if err != nil {
		return err
	}
	if err := removeTree(path); err != nil {
		return err
	}
	err = syncDir(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no volume was ever mounted here
	}
	return err
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
