package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestMain lets the test binary be the children that the benchmark starts of
// itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if run := subcommands[os.Args[1]]; run != nil {
			if err := run(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func TestGuardRemovesTheClusterWhenItsPipeEnds(t *testing.T) {
	bin := t.TempDir()
	done := filepath.Join(bin, "done")
	script := "#!/bin/sh\necho \"$@\" > " + done + "\n"
	if err := os.WriteFile(filepath.Join(bin, "weft"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	guard, err := startGuard(options{bin: bin, name: "no-such"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(done); err == nil {
		t.Fatal("the cluster was removed while the benchmark ran")
	}
	if err := guard.end(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(done)
	if err != nil || string(got) != "down --name no-such\n" {
		t.Errorf("weft was called with %q (%v)", got, err)
	}
}

func TestPlainPodsReachEachOther(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	host, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	var p *plain
	err = inside(host, func() (err error) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "weft-test"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(bridge); err != nil {
			return err
		}
		p, err = newPlain("weft-test", netip.MustParsePrefix("172.30.9.0/24"), 1)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{self: self}
	for i, server := range p.servers {
		child, err := server.start(t.Context(), w.loader(os.Stderr, os.Stderr, "serve"))
		if err != nil {
			t.Fatal(err)
		}
		defer child.stop()
		for _, test := range tests {
			to := path{client: p.client, server: child, to: netip.AddrPortFrom(server.addr, loadPort)}
			err := eventually(t.Context(), 10*time.Second, test+" to a server on the "+distances[i], func() error {
				load, err := w.load(context.Background(), to, test, 20*time.Millisecond)
				if err == nil && load.Transactions == 0 {
					return fmt.Errorf("no transaction: %+v", load)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}
