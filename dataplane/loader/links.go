package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// EnsureTCX makes the pinned link name run program on the device at its
// ingress or egress hook. A link that is there already is kept or updated in
// place; one on another device (its own is gone) is replaced.
func (l *Loader) EnsureTCX(name, program string, ifindex int, attach ebpf.AttachType) error {
	prog := l.programs[program]
	kept, err := l.keepLink(name, prog, func(info *link.Info) bool {
		return info.TCX() != nil && info.TCX().Ifindex == uint32(ifindex)
	})
	if kept || err != nil {
		return err
	}
	ln, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: prog, Attach: attach, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach %s to device %d: %w", program, ifindex, err)
	}
	return l.pin(name, ln)
}

// EnsureCgroup makes the pinned link name run program for the processes of
// the cgroup2 directory path.
func (l *Loader) EnsureCgroup(name, program, path string, attach ebpf.AttachType) error {
	prog := l.programs[program]
	id, err := cgroupID(path)
	if err != nil {
		return err
	}
	kept, err := l.keepLink(name, prog, func(info *link.Info) bool {
		return info.Cgroup() != nil && info.Cgroup().CgroupId == id
	})
	if kept || err != nil {
		return err
	}
	ln, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: attach, Program: prog})
	if err != nil {
		return fmt.Errorf("attach %s to cgroup %s: %w", program, path, err)
	}
	return l.pin(name, ln)
}

// keepLink reports whether the pinned link name can stay, having brought its
// program up to date. A link that cannot stay is unpinned, which detaches it.
func (l *Loader) keepLink(name string, prog *ebpf.Program, same func(*link.Info) bool) (bool, error) {
	path := l.linkPath(name)
	ln, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("take over pinned link %s: %w", name, err)
	}
	defer ln.Close()
	info, err := ln.Info()
	if err != nil {
		return false, fmt.Errorf("look at pinned link %s: %w", name, err)
	}
	if !same(info) {
		l.Writes++
		return false, os.Remove(path)
	}
	want, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("look at program %s: %w", prog, err)
	}
	if id, _ := want.ID(); id == info.Program {
		return true, nil
	}
	l.Writes++
	if err := ln.Update(prog); err != nil {
		return false, fmt.Errorf("update pinned link %s: %w", name, err)
	}
	return true, nil
}

func (l *Loader) pin(name string, ln link.Link) error {
	defer ln.Close()
	l.Writes++
	if err := ln.Pin(l.linkPath(name)); err != nil {
		return fmt.Errorf("pin link %s: %w", name, err)
	}
	return nil
}

// linkPath avoids dots, which a bpffs does not allow in names.
func (l *Loader) linkPath(name string) string {
	return filepath.Join(l.linkDir(), strings.ReplaceAll(name, ".", ":"))
}

// Links lists the names of the pinned links.
func (l *Loader) Links() ([]string, error) { return linksIn(l.linkDir()) }

// PinnedLinks lists the names of the links pinned below pinDir, without
// opening it; none if it does not exist.
func PinnedLinks(pinDir string) ([]string, error) {
	names, err := linksIn(filepath.Join(versionDir(pinDir), "links"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

func linksIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.ReplaceAll(e.Name(), ":", "."))
	}
	return names, nil
}

// Detach unpins a link, which detaches its program. A link that is not there
// is not an error.
func (l *Loader) Detach(name string) error {
	err := os.Remove(l.linkPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l.Writes++
	return err
}

// cgroupID is the number by which a link names its cgroup: the inode of the
// directory (kernfs_node_id).
func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}
