package loader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"weft.dev/weft/dataplane/testnet"
)

// build opens dir as one of several builds would, which differ in settings.
func build(t *testing.T, dir string, number uint64) *Loader {
	t.Helper()
	l, err := Open(dir, Settings{NodeNetns: number})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// attached is the link that is pinned under name.
func attached(t *testing.T, l *Loader, name string) *link.Info {
	t.Helper()
	ln, err := link.LoadPinnedLink(l.linkPath(name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	info, err := ln.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

const loopback = 1 // the ifindex of lo in every namespace

func TestAnotherBuildReplacesProgramsInPlace(t *testing.T) {
	ns := testnet.New(t)
	dir := filepath.Join(testnet.BPFFS(t), "node")
	ns.Do(func() error {
		old := build(t, dir, 1)
		if err := old.EnsureTCX("uplink_ingress", "uplink_ingress", loopback, ebpf.AttachTCXIngress); err != nil {
			return err
		}
		before := attached(t, old, "uplink_ingress")

		fresh := build(t, dir, 2)
		if err := fresh.EnsureTCX("uplink_ingress", "uplink_ingress", loopback, ebpf.AttachTCXIngress); err != nil {
			return err
		}
		after := attached(t, fresh, "uplink_ingress")
		if before.ID != after.ID {
			t.Error("the link was made anew, so packets passed without a program in between")
		}
		if before.Program == after.Program {
			t.Error("the link still runs the old program")
		}
		if err := fresh.PruneOld(); err != nil {
			return err
		}
		builds, err := os.ReadDir(filepath.Join(dir, "v1", "programs"))
		if len(builds) != 1 {
			t.Errorf("programs of %d builds are pinned, want 1", len(builds))
		}
		return err
	})
}

func TestSameBuildTakesOverWithoutAWrite(t *testing.T) {
	dir := filepath.Join(testnet.BPFFS(t), "node")
	build(t, dir, 1)
	if second := build(t, dir, 1); second.Writes != 0 {
		t.Errorf("second Open made %d writes", second.Writes)
	}
}

func TestLinkOfAVanishedDeviceIsReplaced(t *testing.T) {
	dir := filepath.Join(testnet.BPFFS(t), "node")
	gone, here := testnet.New(t), testnet.New(t)
	testnet.Wire(gone, "eth0", here, "eth0")
	var l *Loader
	gone.Do(func() error {
		l = build(t, dir, 1)
		return l.EnsureTCX("pod_egress@eth0.1", "pod_egress", loopback+1, ebpf.AttachTCXIngress)
	})
	here.Do(func() error {
		return l.EnsureTCX("pod_egress@eth0.1", "pod_egress", loopback, ebpf.AttachTCXIngress)
	})
	if got := attached(t, l, "pod_egress@eth0.1").TCX().Ifindex; got != loopback {
		t.Errorf("attached to device %d, want %d", got, loopback)
	}
	names, err := l.Links()
	if err != nil || len(names) != 1 || names[0] != "pod_egress@eth0.1" {
		t.Errorf("links are %q, %v", names, err)
	}
}
