package dataplane

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft.dev/weft/dataplane/pod"
	"weft.dev/weft/dataplane/rtnl"
	"weft.dev/weft/dataplane/service"
	"weft.dev/weft/dataplane/testnet"
)

// TestTrafficFlowsThroughRestartsWithoutLoss sends through every kind of path
// while the dataplane is closed, opened and applied again and again.
func TestTrafficFlowsThroughRestartsWithoutLoss(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	outside := netip.MustParseAddrPort("172.31.0.100:7000")
	c.client.Serve("outside", outside)
	nodePort := netip.AddrPortFrom(c.a.addr(), 30080)
	c.a.state.Services = append(
		frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0)),
		frontends(service.NodePort, nodePort.Addr(), nodePort.Port(), c.b.backend(0))...)
	c.a.apply()

	ctx, stop := context.WithCancel(context.Background())
	results := make(chan error)
	paths := 0
	for _, path := range []struct {
		from *testnet.Namespace
		to   string
	}{
		{c.a.pods[0], c.b.backend(0).String()},
		{c.a.pods[0], c.a.backend(1).String()},
		{c.a.pods[0], netip.AddrPortFrom(clusterIP, servicePort).String()},
		{c.a.pods[0], outside.String()},
		{c.client, nodePort.String()},
	} {
		for _, network := range []string{"tcp", "udp"} {
			conn, err := path.from.Dial(network, path.to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			paths++
			go func() {
				for ctx.Err() == nil {
					if _, err := testnet.Say(conn, "hello"); err != nil {
						results <- err
						return
					}
				}
				results <- nil
			}()
		}
	}
	for range 5 {
		if err := c.a.plane.Close(); err != nil {
			t.Fatal(err)
		}
		c.a.open()
		c.a.apply()
	}
	stop()
	for range paths {
		if err := <-results; err != nil {
			t.Errorf("lost a packet: %v", err)
		}
	}
}

func TestBrokenPodDoesNotHoldUpTheOthers(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Pods = append([]pod.Pod{{
		Name: "test/broken", SandboxID: "broken", Netns: "/nowhere", IfName: "eth0", HostIfName: "weft9",
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.99")},
	}}, c.a.state.Pods...)
	var podErr *PodError
	err := c.a.Try(func() error { return c.a.plane.Apply(context.Background(), c.a.state) })
	if !errors.As(err, &podErr) || podErr.SandboxID != "broken" {
		t.Errorf("Apply says %v, want a PodError of the broken pod", err)
	}
	mustAsk(t, c.a.pods[0], "tcp", netip.AddrPortFrom(c.b.podAddr(0), 8080), "test/node2-pod1")
}

func TestRemovedPodIsGoneAndItsAddressCanBeUsedAgain(t *testing.T) {
	c := newCluster(t, VXLAN)
	moved := c.a.state.Pods[0]
	fresh := testnet.New(t)
	moved.SandboxID, moved.Netns, moved.HostIfName = "sandbox-new", fresh.Path, "weft7"
	c.a.state.Pods = []pod.Pod{moved, c.a.state.Pods[1]}
	c.a.apply()
	fresh.Serve("new", netip.AddrPortFrom(moved.Addrs[0], 8080))
	mustAsk(t, c.b.pods[0], "tcp", netip.AddrPortFrom(moved.Addrs[0], 8080), "new")
	mustAsk(t, c.a.Namespace, "tcp", netip.AddrPortFrom(moved.Addrs[0], 8080), "new")
	c.a.Do(func() error {
		if _, err := netlink.LinkByName("weft1"); !rtnl.IsNotFound(err) {
			t.Errorf("device of the removed pod: %v, want not found", err)
		}
		return nil
	})
	before := c.a.plane.Writes()
	c.a.apply()
	if got := c.a.plane.Writes() - before; got != 0 {
		t.Errorf("second Apply made %d writes", got)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	c := newCluster(t, VXLAN)
	for range 2 {
		c.a.Do(func() error { return Remove(c.a.cfg) })
	}
	c.a.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if name := l.Attrs().Name; strings.HasPrefix(name, "weft") {
				t.Errorf("device %s is left", name)
			}
		}
		return err
	})
	c.a.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: rtnl.Protocol}, netlink.RT_FILTER_PROTOCOL)
		if len(routes) > 0 {
			t.Errorf("routes are left: %v", routes)
		}
		return err
	})
	if _, err := os.Stat(c.a.cfg.PinDir); !os.IsNotExist(err) {
		t.Errorf("pin directory: %v, want it gone", err)
	}
}

func TestPinDirectoryMustBeOnABPFFileSystem(t *testing.T) {
	testnet.RequireRoot(t)
	_, err := Open(context.Background(), Config{PinDir: t.TempDir(), CgroupPath: "/", Routing: VXLAN})
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("Open says %v, want advice to mount a bpffs", err)
	}
}

func TestDumpTellsWhatTheKernelHas(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0))
	c.a.state.Services[0].Affinity = time.Minute
	c.a.apply()
	var out bytes.Buffer
	if err := c.a.plane.Dump(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"tcp 10.96.0.99:80  inside: 10.244.2.11:8080  affinity 60s",
		"udp 10.96.0.99:80  inside: 10.244.2.11:8080",
		"10.244.2.0/24  pods of peer  172.31.0.2",
		"test/node1-pod1",
		"drop_spoofed_source",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("dump lacks %q:\n%s", want, out.String())
		}
	}
}

func TestExpiredFlowsAreDeleted(t *testing.T) {
	c := newCluster(t, VXLAN)
	c.servePods()
	c.a.state.Services = frontends(service.ClusterIP, clusterIP, servicePort, c.b.backend(0))
	c.a.apply()
	mustAsk(t, c.a.pods[0], "udp", netip.AddrPortFrom(clusterIP, servicePort), "test/node2-pod1")
	for _, step := range []struct {
		at      time.Duration
		deleted int
	}{{0, 0}, {24 * time.Hour, 2}} {
		if _, deleted, err := c.a.plane.flows.Expire(step.at); err != nil || deleted != step.deleted {
			t.Errorf("at %s: deleted %d, %v; want %d", step.at, deleted, err, step.deleted)
		}
	}
}
