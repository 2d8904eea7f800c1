package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol marks the routes that are ours (rtm_protocol of rtnetlink(7)).
const Protocol netlink.RouteProtocol = 87

// Route is one route of the main table. The zero Device is for Unreachable
// routes, which answer "no route to host".
type Route struct {
	Dst         netip.Prefix
	Device      int // ifindex
	Via         netip.Addr
	Src         netip.Addr // preferred source of this host's packets
	Unreachable bool
}

// EnsureRoutes makes the routes of our Protocol exactly want. Routes of
// others are left alone. Additions come before removals.
func (n *Namespace) EnsureRoutes(want []Route) error {
	have, err := n.routes()
	if err != nil {
		return err
	}
	wanted := map[netip.Prefix]bool{}
	var errs []error
	for _, r := range want {
		wanted[r.Dst] = true
		if have[r.Dst] == r {
			continue
		}
		n.Writes++
		if err := n.RouteReplace(r.netlink()); err != nil {
			errs = append(errs, fmt.Errorf("set route to %s: %w", r.Dst, err))
		}
	}
	for dst, r := range have {
		if wanted[dst] {
			continue
		}
		n.Writes++
		if err := n.RouteDel(r.netlink()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", dst, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Namespace) routes() (map[netip.Prefix]Route, error) {
	have := map[netip.Prefix]Route{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := n.RouteListFiltered(family, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			if r.Dst == nil {
				continue
			}
			route := fromNetlink(r)
			have[route.Dst] = route
		}
	}
	return have, nil
}

func fromNetlink(r netlink.Route) Route {
	ip, _ := netip.AddrFromSlice(r.Dst.IP)
	ones, _ := r.Dst.Mask.Size()
	route := Route{Dst: netip.PrefixFrom(ip.Unmap(), ones)}
	if r.Type == unix.RTN_UNREACHABLE {
		route.Unreachable = true
		return route
	}
	route.Device = r.LinkIndex
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		route.Via = via.Unmap()
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		route.Src = src.Unmap()
	}
	return route
}

func (r Route) netlink() *netlink.Route {
	out := &netlink.Route{Dst: ipNet(r.Dst), Protocol: Protocol, LinkIndex: r.Device}
	if r.Unreachable {
		out.Type = unix.RTN_UNREACHABLE
		return out
	}
	if r.Via.IsValid() {
		out.Gw = r.Via.AsSlice()
		out.Flags = int(netlink.FLAG_ONLINK)
	} else {
		out.Scope = netlink.SCOPE_LINK
	}
	if r.Src.IsValid() {
		out.Src = r.Src.AsSlice()
	}
	return out
}

// EnsureGateway makes the device's default route lead to via, an address
// that is on the link though no prefix says so.
func (n *Namespace) EnsureGateway(link netlink.Link, via netip.Addr) error {
	index := link.Attrs().Index
	have, err := n.RouteListFiltered(family(via), &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
	}
	onLink, isDefault := false, false
	for _, r := range have {
		switch {
		case r.Gw.Equal(via.AsSlice()):
			isDefault = true
		case r.Dst != nil && r.Dst.IP.Equal(via.AsSlice()):
			onLink = true
		}
	}
	if !onLink && via.Is4() {
		n.Writes++
		err := n.RouteReplace(&netlink.Route{
			LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(via, via.BitLen())),
		})
		if err != nil {
			return fmt.Errorf("set route to gateway %s: %w", via, err)
		}
	}
	if isDefault {
		return nil
	}
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if via.Is6() {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	n.Writes++
	err = n.RouteReplace(&netlink.Route{
		LinkIndex: index, Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Dst: ipNet(everything),
	})
	if err != nil {
		return fmt.Errorf("set default route via %s: %w", via, err)
	}
	return nil
}
