// Package rtnl makes devices, addresses, routes, neighbours and sysctls of a
// network namespace what they should be. Each Ensure method looks first and
// writes only what differs, so it is safe to repeat.
package rtnl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace edits one network namespace. It is not safe for concurrent use.
type Namespace struct {
	*netlink.Handle
	// Writes counts changes made.
	Writes int
}

// Current returns the namespace of the calling thread.
func Current() (*Namespace, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &Namespace{Handle: h}, nil
}

// At returns the namespace behind ns.
func At(ns netns.NsHandle) (*Namespace, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in network namespace: %w", err)
	}
	return &Namespace{Handle: h}, nil
}

// IsNotFound reports whether err says that a device does not exist.
func IsNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// EnsureUp sets the device up.
func (n *Namespace) EnsureUp(link netlink.Link) error {
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	n.Writes++
	if err := n.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return nil
}

// EnsureMTU sets the device's MTU, in bytes.
func (n *Namespace) EnsureMTU(link netlink.Link, mtu int) error {
	if link.Attrs().MTU == mtu {
		return nil
	}
	n.Writes++
	if err := n.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of %s to %d: %w", link.Attrs().Name, mtu, err)
	}
	return nil
}

// EnsureAddr gives the device exactly the wanted global addresses, each
// without a prefix of its own (/32 or /128).
func (n *Namespace) EnsureAddr(link netlink.Link, want []netip.Addr) error {
	have, err := n.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	missing := slices.Clone(want)
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if ip.IsLinkLocalUnicast() {
			continue
		}
		if i := slices.Index(missing, ip); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		n.Writes++
		if err := n.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", ip, link.Attrs().Name, err)
		}
	}
	for _, ip := range missing {
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen()))}
		if ip.Is6() {
			a.Flags = unix.IFA_F_NODAD // the address is assigned, not found
		}
		n.Writes++
		if err := n.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", ip, link.Attrs().Name, err)
		}
	}
	return nil
}

// EnsureNeighbour makes ip on the device resolve to mac without asking.
func (n *Namespace) EnsureNeighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	have, err := n.NeighList(link.Attrs().Index, family(ip))
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", link.Attrs().Name, err)
	}
	for _, e := range have {
		if e.IP.Equal(ip.AsSlice()) && e.State == netlink.NUD_PERMANENT && slices.Equal(e.HardwareAddr, mac) {
			return nil
		}
	}
	n.Writes++
	err = n.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: family(ip), State: netlink.NUD_PERMANENT,
		IP: ip.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s of %s: %w", ip, link.Attrs().Name, err)
	}
	return nil
}

// EnsureSysctl writes value to a file below /proc/sys in the namespace of the
// calling thread. A file that does not exist (an address family that is
// switched off) is left out.
func (n *Namespace) EnsureSysctl(value string, path ...string) error {
	file := filepath.Join(append([]string{"/proc/sys"}, path...)...)
	have, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	if strings.TrimSpace(string(have)) == value {
		return nil
	}
	n.Writes++
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
