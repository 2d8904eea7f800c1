package peer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.dev/weft/dataplane/rtnl"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

var (
	own = Own{
		Addresses:    []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		PodCIDRs:     prefixes("10.244.1.0/24"),
		ClusterCIDRs: prefixes("10.244.0.0/16"),
		ServiceCIDRs: prefixes("10.96.0.0/16"),
	}
	peers = []Peer{{Node: "b", Addr: netip.MustParseAddr("192.0.2.2"), PodCIDRs: prefixes("10.244.2.0/24", "2001:db8:2::/64")}}
)

func TestNetworksSayWhoIsBehindEachPrefix(t *testing.T) {
	var got []string
	for key, n := range Entries(own, peers) {
		got = append(got, fmt.Sprintf("%s/%d kind %d node %s",
			netip.AddrFrom16(key.Addr).Unmap(), key.Prefixlen, n.Kind, netip.AddrFrom16(n.Node.B).Unmap()))
	}
	slices.Sort(got)
	want := []string{
		"10.244.0.0/112 kind 1 node ::",
		"10.244.1.0/120 kind 3 node ::",
		"10.244.2.0/120 kind 5 node 192.0.2.2",
		"10.96.0.0/112 kind 2 node ::",
		"192.0.2.1/128 kind 4 node ::",
		"192.0.2.2/128 kind 6 node 192.0.2.2",
		"2001:db8:2::/64 kind 5 node 192.0.2.2",
		"2001:db8::1/128 kind 4 node ::",
	}
	if !slices.Equal(got, want) {
		t.Errorf("networks are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOwnAddressWinsOverAPeersClaimToIt(t *testing.T) {
	greedy := []Peer{{Node: "b", Addr: own.Addresses[0], PodCIDRs: own.PodCIDRs}}
	entries := Entries(own, greedy)
	if kind := entries[Key(own.PodCIDRs[0])].Kind; kind != 3 {
		t.Errorf("own pods are of kind %d", kind)
	}
	if kind := entries[Key(host(own.Addresses[0]))].Kind; kind != 4 {
		t.Errorf("own address is of kind %d", kind)
	}
}

func TestRoutesToPeersUseTheOverlayOrThePeer(t *testing.T) {
	unreachable := rtnl.Route{Dst: own.PodCIDRs[0], Unreachable: true}
	for name, tc := range map[string]struct {
		overlay int
		want    []rtnl.Route
	}{
		"overlay": {7, []rtnl.Route{
			{Dst: peers[0].PodCIDRs[0], Device: 7, Src: own.Addresses[0]},
			{Dst: peers[0].PodCIDRs[1], Device: 7, Src: own.Addresses[1]},
			unreachable,
		}},
		"native": {0, []rtnl.Route{
			{Dst: peers[0].PodCIDRs[0], Device: 2, Via: peers[0].Addr, Src: own.Addresses[0]},
			{Dst: peers[0].PodCIDRs[1], Device: 2, Via: peers[0].Addr, Src: own.Addresses[1]},
			unreachable,
		}},
	} {
		if got := Routes(own, peers, tc.overlay, 2); !slices.Equal(got, tc.want) {
			t.Errorf("%s: routes are %v, want %v", name, got, tc.want)
		}
	}
}
