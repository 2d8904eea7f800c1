package localcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// subnets are the networks a local cluster may take: 172.30.K.0/24.
func subnets(yield func(netip.Prefix) bool) {
	for k := range 256 {
		if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, byte(k), 0}), 24)) {
			return
		}
	}
}

// freeSubnet returns the first subnet that neither another cluster nor a
// route or address of the host uses.
func freeSubnet() (netip.Prefix, error) {
	taken, err := hostPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	entries, _ := os.ReadDir(stateRoot)
	for _, entry := range entries {
		if other, err := Load(entry.Name()); err == nil {
			taken = append(taken, other.Subnet)
		}
	}
	for subnet := range subnets {
		if !overlapsAny(subnet, taken) {
			return subnet, nil
		}
	}
	return netip.Prefix{}, errors.New("no free network in 172.30.0.0/16 for the nodes; remove a cluster with: weft down --name NAME")
}

func overlapsAny(prefix netip.Prefix, others []netip.Prefix) bool {
	for _, other := range others {
		if prefix.Overlaps(other) {
			return true
		}
	}
	return false
}

// hostPrefixes are the networks the host has a route to, the default route
// aside.
func hostPrefixes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	var prefixes []netip.Prefix
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(route.Dst.IP.To4())
		if ones, _ := route.Dst.Mask.Size(); ones > 0 {
			prefixes = append(prefixes, netip.PrefixFrom(addr, ones))
		}
	}
	return prefixes, nil
}

// ensureBridge makes the bridge that joins the nodes and gives the host its
// address there.
func (c *Cluster) ensureBridge() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = c.bridge()
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make bridge %s: %w", bridge.Name, err)
	}
	link, err := netlink.LinkByName(bridge.Name)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(c.hostAddr(), c.Subnet.Bits()))}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give %s to %s: %w", addr.IPNet, bridge.Name, err)
	}
	return netlink.LinkSetUp(link)
}

// ensureNode makes the node's network namespace, wired to the bridge.
func (c *Cluster) ensureNode(n Node) error {
	if err := ensureNetns(n.netnsPath()); err != nil {
		return fmt.Errorf("make network namespace %s: %w", n.netns(), err)
	}
	handle, err := netns.GetFromPath(n.netnsPath())
	if err != nil {
		return err
	}
	defer handle.Close()
	inside, err := netlink.NewHandleAt(handle)
	if err != nil {
		return err
	}
	defer inside.Close()

	if _, err := inside.LinkByName("eth0"); err != nil {
		if err := c.wire(n, handle); err != nil {
			return fmt.Errorf("wire %s to %s: %w", n.Name, c.bridge(), err)
		}
	}
	return c.configure(n, inside)
}

// wire makes the veth pair between the bridge and the node.
func (c *Cluster) wire(n Node, handle netns.NsHandle) error {
	bridge, err := netlink.LinkByName(c.bridge())
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.hostDevice()
	attrs.MasterIndex = bridge.Attrs().Index
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(handle)})
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(n.hostDevice())
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// configure gives the node its address and a default route to the host.
func (c *Cluster) configure(n Node, inside *netlink.Handle) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			return err
		}
		if err := inside.LinkSetUp(link); err != nil {
			return err
		}
	}
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.Addr, c.Subnet.Bits()))}
	if err := inside.AddrReplace(eth0, addr); err != nil {
		return fmt.Errorf("give %s to %s: %w", addr.IPNet, n.Name, err)
	}
	return inside.RouteReplace(&netlink.Route{
		LinkIndex: eth0.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)},
		Gw:        c.hostAddr().AsSlice(),
	})
}

// ensureNetns makes a named network namespace that ip-netns(8) can list.
func ensureNetns(path string) error {
	if isNamespace(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	file.Close()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
}

func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// onOwnThread runs f on a thread that ends with it, so that a namespace the
// thread entered touches no other goroutine.
func onOwnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- f()
	}()
	return <-result
}

// inNetns runs f on a thread inside the node's network namespace; processes
// that f starts are born there.
func (n Node) inNetns(f func() error) error {
	return onOwnThread(func() error {
		handle, err := netns.GetFromPath(n.netnsPath())
		if err != nil {
			return fmt.Errorf("network namespace of %s: %w", n.Name, err)
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			return fmt.Errorf("enter network namespace of %s: %w", n.Name, err)
		}
		return f()
	})
}

// removeNetwork removes the namespaces and the bridge; veth pairs go with them.
func (c *Cluster) removeNetwork() error {
	var errs []error
	entries, _ := os.ReadDir(netnsRoot)
	ours := regexp.MustCompile("^weft-" + c.Name + "-node-[0-9]+$")
	for _, entry := range entries {
		if !ours.MatchString(entry.Name()) {
			continue
		}
		path := filepath.Join(netnsRoot, entry.Name())
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
		errs = append(errs, os.Remove(path))
	}
	links, err := netlink.LinkList()
	errs = append(errs, err)
	ours = regexp.MustCompile("^w-" + c.Name + "-[0-9]+$")
	for _, link := range links {
		name := link.Attrs().Name
		if name != c.bridge() && !ours.MatchString(name) {
			continue
		}
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(link); err != nil && !errors.As(err, &gone) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove device %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
