package network

import (
	"context"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/cni/wire"
	"weft.dev/weft/dataplane"
	"weft.dev/weft/dataplane/testnet"
)

// realNode is a node in a namespace of its own: it enters the namespace for
// all that it does in the kernel, as an agent on a local cluster has once.
type realNode struct {
	ns    *testnet.Namespace
	plane *dataplane.Dataplane
}

func (r realNode) Apply(ctx context.Context, s dataplane.State) error {
	return r.ns.Try(func() error { return r.plane.Apply(ctx, s) })
}

func (realNode) IsNetns(path string) bool    { return linuxDevices{}.IsNetns(path) }
func (realNode) IsOwnNetns(path string) bool { return linuxDevices{}.IsOwnNetns(path) }

func (realNode) Inside(path, name string) (device, error) { return linuxDevices{}.Inside(path, name) }

func (r realNode) Host(name string) (d device, err error) {
	err = r.ns.Try(func() (err error) {
		d, err = linuxDevices{}.Host(name)
		return err
	})
	return d, err
}

func openNode(t *testing.T, ns *testnet.Namespace, cfg dataplane.Config) realNode {
	t.Helper()
	r := realNode{ns: ns}
	ns.Do(func() (err error) {
		r.plane, err = dataplane.Open(context.Background(), cfg)
		return err
	})
	return r
}

// TestPodsOfARealKernel attaches two pods through CNI, sends traffic between
// them and through a ClusterIP, restarts the agent, and detaches them.
func TestPodsOfARealKernel(t *testing.T) {
	testnet.RequireRoot(t)
	ns, outside := testnet.New(t), testnet.New(t)
	testnet.Wire(ns, "eth0", outside, "eth0")
	ns.Addr("eth0", netip.MustParsePrefix("172.30.0.1/24"))
	cfg := dataplane.Config{PinDir: testnet.BPFFS(t) + "/node", CgroupPath: testnet.Cgroup(t), Routing: dataplane.VXLAN}
	port := int32(8080)
	objects := []*discoveryv1.EndpointSlice{{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.3"}}},
	}}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.20", Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}},
	}
	udp := corev1.ProtocolUDP
	objects[0].Ports[0].Protocol = &udp

	dir := t.TempDir()
	plane := openNode(t, ns, cfg)
	n := startOn(t, dir, plane, plane, nodeObject("10.244.1.0/24"), service, objects[0])
	pods := map[string]*testnet.Namespace{"s1": testnet.New(t), "s2": testnet.New(t)}
	at := func(command, id string) wire.Request {
		req := request(command, id)
		req.Netns = pods[id].Path
		return req
	}
	for _, id := range []string{"s1", "s2"} {
		begin := time.Now()
		if resp := n.handle(t.Context(), at("ADD", id)); resp.Error != nil {
			t.Fatalf("ADD %s: %v", id, resp.Error)
		}
		t.Logf("ADD %s took %s", id, time.Since(begin))
	}
	pods["s2"].Serve("s2", netip.MustParseAddrPort("10.244.1.3:8080"))
	check := func(when string) {
		t.Helper()
		for _, id := range []string{"s1", "s2"} {
			if resp := n.handle(t.Context(), at("CHECK", id)); resp.Error != nil {
				t.Errorf("%s: CHECK %s: %v", when, id, resp.Error)
			}
		}
		if err := pods["s1"].Ping("10.244.1.3"); err != nil {
			t.Errorf("%s: ping: %v", when, err)
		}
		for _, target := range []struct{ network, addr string }{{"tcp", "10.244.1.3:8080"}, {"udp", "10.244.1.3:8080"}, {"udp", "10.96.0.20:53"}} {
			if answer, err := pods["s1"].Ask(target.network, target.addr, "hello"); err != nil {
				t.Errorf("%s: %s %s: %q, %v", when, target.network, target.addr, answer, err)
			}
		}
	}
	check("after ADD")

	n.stop()
	if err := plane.plane.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pods["s1"].Ping("10.244.1.3"); err != nil {
		t.Errorf("without an agent: ping: %v", err)
	}
	plane = openNode(t, ns, cfg)
	t.Cleanup(func() { plane.plane.Close() })
	n = startOn(t, dir, plane, plane, nodeObject("10.244.1.0/24"), service, objects[0])
	<-n.ready
	check("after a restart")

	for range 2 {
		if resp := n.handle(t.Context(), at("DEL", "s1")); resp.Error != nil {
			t.Fatalf("DEL: %v", resp.Error)
		}
	}
	if _, err := plane.Inside(pods["s1"].Path, "eth0"); err == nil {
		t.Error("after DEL the pod still has its device")
	}
	if _, err := plane.Host(hostIfName("s1", "eth0")); err == nil {
		t.Error("after DEL the node still has the pod's device")
	}
	if got := n.pool.Reserved(); len(got) != 1 {
		t.Errorf("after DEL addresses are taken: %v", got)
	}
}
