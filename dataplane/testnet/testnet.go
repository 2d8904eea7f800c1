// Package testnet builds networks for tests out of namespaces and veth pairs
// and sends real traffic through them. Everything goes away with the test.
package testnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// RequireRoot skips the test, with the reason, when it may not make
// namespaces.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces and load BPF programs")
	}
}

// Namespace is a network namespace of its own, reachable by path.
type Namespace struct {
	t    testing.TB
	Path string
	fd   netns.NsHandle
}

// New makes a namespace with its loopback device up.
func New(t testing.TB) *Namespace {
	t.Helper()
	RequireRoot(t)
	n := &Namespace{t: t, Path: filepath.Join(t.TempDir(), "netns")}
	if err := os.WriteFile(n.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, n.Path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep network namespace: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.fd.Close()
		if err := unix.Unmount(n.Path, unix.MNT_DETACH); err != nil {
			t.Errorf("remove network namespace: %v", err)
		}
	})
	if n.fd, err = netns.GetFromPath(n.Path); err != nil {
		t.Fatal(err)
	}
	return n
}

// onThread runs f on a thread that is thrown away afterwards, so that f may
// change the thread's namespaces.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		done <- f()
	}()
	return <-done
}

// Try runs f on a thread inside the namespace and returns its error. Sockets
// that f makes stay in the namespace.
func (n *Namespace) Try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.fd); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Do is Try for what must not fail.
func (n *Namespace) Do(f func() error) {
	n.t.Helper()
	if err := n.Try(f); err != nil {
		n.t.Fatal(err)
	}
}

// Wire joins two namespaces by a veth pair, both ends up.
func Wire(a *Namespace, aName string, b *Namespace, bName string) {
	a.t.Helper()
	a.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd)})
	})
	a.up(aName)
	b.up(bName)
}

func (n *Namespace) up(name string) {
	n.t.Helper()
	n.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

// Bridge makes a bridge and joins the named devices to it.
func (n *Namespace) Bridge(name string, ports ...string) {
	n.t.Helper()
	n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(link, bridge); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(bridge)
	})
}

// Addr adds an address to a device.
func (n *Namespace) Addr(device string, prefix netip.Prefix) {
	n.t.Helper()
	n.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{Flags: flagsFor(prefix), IPNet: &net.IPNet{
			IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}})
	})
}

func flagsFor(prefix netip.Prefix) int {
	if prefix.Addr().Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// BPFFS mounts a private BPF file system and returns its directory.
func BPFFS(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}

// Cgroup makes a cgroup2 directory and returns its path.
func Cgroup(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	dir, err := os.MkdirTemp(root, "weft-test-")
	if err != nil {
		t.Skipf("needs a writable cgroup2 file system: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}
