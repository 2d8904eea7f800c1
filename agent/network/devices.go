package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// devices reads, and never writes, what the kernel has.
type devices interface {
	// IsNetns says whether path is a network namespace; a path left over from
	// before a reboot is not.
	IsNetns(path string) bool
	// IsOwnNetns says whether path is the namespace this process runs in.
	IsOwnNetns(path string) bool
	// Inside describes a device of the namespace at path, Host one of ours.
	Inside(path, name string) (device, error)
	Host(name string) (device, error)
}

type device struct {
	MAC   string
	MTU   int
	Addrs []netip.Addr
}

// linuxDevices asks the kernel by netlink.
type linuxDevices struct{}

func (linuxDevices) IsNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && (st.Type == unix.NSFS_MAGIC || st.Type == unix.PROC_SUPER_MAGIC)
}

func (linuxDevices) IsOwnNetns(path string) bool {
	var own, other unix.Stat_t
	return unix.Stat("/proc/self/ns/net", &own) == nil && unix.Stat(path, &other) == nil &&
		own.Ino == other.Ino && own.Dev == other.Dev
}

func (linuxDevices) Inside(path, name string) (device, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return device{}, fmt.Errorf("open netns %s: %w", path, err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return device{}, fmt.Errorf("open netns %s: %w", path, err)
	}
	return describe(handle, name)
}

func (linuxDevices) Host(name string) (device, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return device{}, err
	}
	return describe(handle, name)
}

// describe closes the handle.
func describe(handle *netlink.Handle, name string) (device, error) {
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if err != nil {
		return device{}, fmt.Errorf("device %s: %w", name, err)
	}
	addrs, err := handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return device{}, fmt.Errorf("addresses of %s: %w", name, err)
	}
	d := device{MAC: link.Attrs().HardwareAddr.String(), MTU: link.Attrs().MTU}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			d.Addrs = append(d.Addrs, addr.Unmap())
		}
	}
	return d, nil
}
