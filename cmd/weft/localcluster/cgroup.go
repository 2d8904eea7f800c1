package localcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/agent/cgroup2"
)

// ensureSystemCgroup makes the cgroup of a node's own programs and returns its
// path in the cgroup2 hierarchy. All that start below it, shims included, can
// be found and killed through it.
func ensureSystemCgroup(n Node) (string, error) {
	root, err := cgroup2.Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, n.cgroup(), "system")
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	return path, nil
}

// killCgroup kills every process in the cgroup and below it, and waits until
// all have ended.
func killCgroup(path string) error {
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	for range 1000 {
		events, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		if err != nil || strings.Contains(string(events), "populated 0") {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("kill cgroup %s: processes %v are still there after 10 s", path, cgroupProcesses(path))
}

func cgroupProcesses(root string) (pids []int) {
	filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return nil
		}
		text, _ := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// removeCgroups removes the directory of that path, and all below it, from
// every hierarchy of the machine.
func removeCgroups(path string) error {
	roots := []string{"/sys/fs/cgroup"}
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		roots = append(roots, filepath.Join("/sys/fs/cgroup", entry.Name()))
	}
	var errs []error
	for _, root := range roots {
		errs = append(errs, removeCgroupTree(filepath.Join(root, path)))
	}
	return errors.Join(errs...)
}

// removeCgroupTree removes cgroup directories depth first; their files are
// the kernel's and go with them. A cgroup just emptied may stay busy for a
// moment.
func removeCgroupTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if entry.IsDir() {
			errs = append(errs, removeCgroupTree(filepath.Join(path, entry.Name())))
		}
	}
	for range 200 {
		if err = unix.Rmdir(path); err == nil || errors.Is(err, unix.ENOENT) {
			return errors.Join(errs...)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(append(errs, fmt.Errorf("remove cgroup %s: %w", path, err))...)
}
