package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"weft.dev/weft/dataplane/bpfmap"
	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/conntrack"
	"weft.dev/weft/dataplane/loader"
	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/rtnl"
	"weft.dev/weft/dataplane/service"
)

// OverlayDevice is the tunnel device of a node with VXLAN routing, and
// OverlayPort its UDP port.
const (
	OverlayDevice = "weft_vxlan"
	OverlayPort   = 8472
)

// Dataplane is the open dataplane of one node. Its methods may be called
// concurrently; the threads that call Open and Apply must be in the node's
// network namespace.
type Dataplane struct {
	cfg Config

	mu        sync.Mutex
	net       *rtnl.Namespace
	loader    *loader.Loader
	node      *bpfmap.Map[uint32, bpfobj.MapsNode]
	networks  *bpfmap.Map[bpfobj.MapsNetworkKey, bpfobj.MapsNetwork]
	endpoints *bpfmap.Map[bpfobj.MapsAddr, bpfobj.MapsEndpoint]
	services  *service.Table
	flows     *conntrack.Table
	mapWrites int

	// pods are the devices made or checked by this process, by host device.
	pods map[string]device
	// routes are those last set, so that an unchanged set costs nothing.
	routes []rtnl.Route
	// udp are the UDP frontends that no socket of the node is stale for; nil
	// before the first look.
	udp []service.Frontend
	// current says that all links run this build's programs.
	current bool

	// stop ends the expiry of flows, expired tells when it has ended.
	stop    context.CancelFunc
	expired chan struct{}
}

// device is a pod's veth pair as it was when last looked at.
type device struct {
	pod     pod.Pod
	mtu     int
	ifindex int
}

// Open takes over what an earlier process left below cfg.PinDir and loads
// what is missing. It attaches nothing: the first Apply does. From then on it
// expires tracked flows, until Close.
func Open(ctx context.Context, cfg Config) (*Dataplane, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	d := &Dataplane{cfg: cfg, pods: map[string]device{}}
	if d.loader, err = loader.Open(cfg.PinDir, loader.Settings{NodeNetns: cookie}); err != nil {
		return nil, fmt.Errorf("open dataplane: %w", err)
	}
	if d.net, err = rtnl.Current(); err != nil {
		d.loader.Close()
		return nil, fmt.Errorf("open dataplane: %w", err)
	}
	if err := d.readMaps(); err != nil {
		return nil, errors.Join(fmt.Errorf("open dataplane: %w", err), d.closeHandles())
	}
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	d.expired = make(chan struct{})
	go d.expireUntil(ctx)
	return d, nil
}

func (c Config) validate() error {
	switch {
	case c.PinDir == "":
		return errors.New("dataplane: Config.PinDir is required")
	case c.CgroupPath == "":
		return errors.New("dataplane: Config.CgroupPath is required")
	case c.Routing != VXLAN && c.Routing != Native:
		return fmt.Errorf("dataplane: Config.Routing is %q, not %q or %q", c.Routing, VXLAN, Native)
	}
	return nil
}

// netnsCookie identifies the thread's network namespace to BPF programs.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie, os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
}

func (d *Dataplane) readMaps() error {
	var errs [4]error
	d.node, errs[0] = bpfmap.Open[uint32, bpfobj.MapsNode]("nodes", d.loader.Map("nodes"))
	d.networks, errs[1] = bpfmap.Open[bpfobj.MapsNetworkKey, bpfobj.MapsNetwork]("networks", d.loader.Map("networks"))
	d.endpoints, errs[2] = bpfmap.Open[bpfobj.MapsAddr, bpfobj.MapsEndpoint]("endpoints", d.loader.Map("endpoints"))
	d.flows = conntrack.New(d.loader.Map("flows"))
	d.services, errs[3] = service.Open(d.loader.Map)
	return errors.Join(errs[:]...)
}

// Writes is how many changes this process has made to the kernel so far:
// map entries, programs, links, devices, addresses, routes, sysctls. A second
// Apply of the same State leaves it as it is.
func (d *Dataplane) Writes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mapWrites + d.loader.Writes + d.net.Writes
}

// Close gives up the handles of this process. Everything in the kernel stays
// and goes on working.
func (d *Dataplane) Close() error {
	d.stop()
	<-d.expired
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closeHandles()
}

func (d *Dataplane) closeHandles() error {
	d.net.Close()
	return d.loader.Close()
}

// Remove takes everything of a dataplane away: pins and with them links, maps
// and programs, then devices and routes. The calling thread must be in the
// node's network namespace. Removing what is not there is not an error.
func Remove(cfg Config) error {
	net, err := rtnl.Current()
	if err != nil {
		return err
	}
	defer net.Close()
	names, err := loader.PinnedLinks(cfg.PinDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if _, hostIfName, ok := strings.Cut(name, "@"); ok {
			errs = append(errs, pod.Remove(net, hostIfName))
		}
	}
	errs = append(errs,
		net.EnsureRoutes(nil),
		pod.Remove(net, OverlayDevice),
		loader.Remove(cfg.PinDir))
	return errors.Join(errs...)
}
