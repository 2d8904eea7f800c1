package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"weft.dev/weft/agent/cgroup2"
	"weft.dev/weft/cmd/weft/progress"
)

// Down removes the cluster and all that belongs to it. It needs none of the
// cluster's processes, and may be repeated; a cluster that is not there is not
// an error.
func Down(_ context.Context, name string, display *progress.Display) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a local cluster needs root: run it with sudo")
	}
	held, err := lock(name)
	if err != nil {
		return err
	}
	defer held.Close()
	c, err := Load(name)
	if err != nil {
		// Whatever is left of a cluster without its file is removed by name.
		c = &Cluster{Name: name}
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"stop processes", c.kill},
		{"unmount", c.unmount},
		{"unpin BPF programs and maps", c.unpin},
		{"remove network", c.removeNetwork},
		{"remove cgroups", c.removeCgroups},
		{"remove files", c.removeFiles},
	}
	var errs []error
	for _, step := range steps {
		err := display.Step(step.what, func(func(string)) error { return step.do() })
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.what, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Cluster) kill() error {
	root, err := cgroup2.Root()
	if err != nil {
		return err
	}
	return killCgroup(filepath.Join(root, "weft", c.Name))
}

// unmount takes away every mount below the cluster's directories, the newest
// first.
func (c *Cluster) unmount() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	points := mountsBelow(string(text), c.stateDir(), c.runDir())
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points of /proc/self/mountinfo (proc(5)) that
// are one of the directories or lie below one, in the order of mounting.
func mountsBelow(mountinfo string, dirs ...string) (points []string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		for _, dir := range dirs {
			if point == dir || strings.HasPrefix(point, dir+"/") {
				points = append(points, point)
				break
			}
		}
	}
	return points
}

func (c *Cluster) unpin() error {
	if err := os.RemoveAll(c.pinDir()); err != nil {
		return err
	}
	if err := os.Remove(pinRoot); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if c.MountedBPF && !anyPinned() {
		return unix.Unmount("/sys/fs/bpf", 0)
	}
	return nil
}

// anyPinned reports whether something is pinned in /sys/fs/bpf; the kernel's
// own files there end in .debug (kernel/bpf/inode.c, populate_bpffs).
func anyPinned() bool {
	entries, err := os.ReadDir("/sys/fs/bpf")
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".debug") {
			return true
		}
	}
	return err != nil
}

// removeCgroups removes the cluster's cgroups, and the directory of all
// clusters with the last of them.
func (c *Cluster) removeCgroups() error {
	if err := removeCgroups(filepath.Join("/weft", c.Name)); err != nil {
		return err
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/weft")
	for _, root := range append(roots, "/sys/fs/cgroup/weft") {
		unix.Rmdir(root) // stays while another cluster has cgroups below it
	}
	return nil
}

// removeFiles removes state and sockets, after making sure that nothing is
// mounted there any more: removing through a mount would delete a user's data.
func (c *Cluster) removeFiles() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if left := mountsBelow(string(text), c.stateDir(), c.runDir()); len(left) > 0 {
		sort.Strings(left)
		return fmt.Errorf("still mounted, so nothing is removed: %s", strings.Join(left, ", "))
	}
	err = errors.Join(
		os.RemoveAll(c.stateDir()),
		os.RemoveAll(c.runDir()),
		os.Remove(filepath.Join(runRoot, c.Name+".lock")),
	)
	for _, root := range []string{stateRoot, runRoot} {
		unix.Rmdir(root) // stays while another cluster has files there
	}
	return err
}
