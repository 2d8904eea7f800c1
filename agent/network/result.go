package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft.dev/weft/agent/desired"
	"weft.dev/weft/cni/wire"
	"weft.dev/weft/dataplane/pod"
)

// result describes an attached sandbox as CNI types 1.0/1.1 have it: the
// node's end of the device, the pod's end, its addresses as single hosts, and
// a default route per family.
func (n *Network) result(s desired.Sandbox, version string) *types100.Result {
	host, inside := &types100.Interface{Name: s.HostIfName}, &types100.Interface{Name: s.IfName, Sandbox: s.Netns}
	// The dataplane has made the devices; not to know their details is no
	// reason to fail.
	if d, err := n.devices.Host(s.HostIfName); err == nil {
		host.Mac, host.Mtu = d.MAC, d.MTU
	}
	if d, err := n.devices.Inside(s.Netns, s.IfName); err == nil {
		inside.Mac, inside.Mtu = d.MAC, d.MTU
	}
	r := &types100.Result{CNIVersion: version, Interfaces: []*types100.Interface{host, inside}}
	if version == "1.0.0" {
		host.Mtu, inside.Mtu = 0, 0 // new in 1.1
	}
	for _, addr := range s.Addrs {
		gateway := net.IP(gatewayOf(addr).AsSlice())
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: types100.Int(1), Address: ipNet(addr, addr.BitLen()), Gateway: gateway})
		everywhere := netip.IPv4Unspecified()
		if addr.Is6() {
			everywhere = netip.IPv6Unspecified()
		}
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(everywhere, 0), GW: gateway})
	}
	return r
}

func ipNet(addr netip.Addr, bits int) net.IPNet {
	return net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

// check verifies that a sandbox is as ADD left it.
func (n *Network) check(req wire.Request) error {
	n.mu.Lock()
	s, ok := n.sandboxes[req.ContainerID]
	var r record
	if ok {
		r = s.record
	}
	n.mu.Unlock()
	if !ok || r.Leaving || r.IfName != req.IfName {
		return &wire.Error{Code: codeUnknownContainer, Msg: fmt.Sprintf("sandbox %s is not attached as %s", req.ContainerID, req.IfName)}
	}
	if r.Netns != req.Netns {
		return checkFailed("CNI_NETNS: the sandbox is attached in %s, not in %s", r.Netns, req.Netns)
	}
	if err := n.checkDevices(r.Sandbox); err != nil {
		return err
	}
	return checkPrevResult(req, r.Sandbox)
}

func (n *Network) checkDevices(s desired.Sandbox) error {
	if _, err := n.devices.Host(s.HostIfName); err != nil {
		return checkFailed("the node's end is missing: %v", err)
	}
	inside, err := n.devices.Inside(s.Netns, s.IfName)
	if err != nil {
		return checkFailed("the pod's end is missing: %v", err)
	}
	for _, addr := range s.Addrs {
		if !slices.Contains(inside.Addrs, addr) {
			return checkFailed("%s in %s has lost its address %s", s.IfName, s.Netns, addr)
		}
	}
	return nil
}

// checkPrevResult compares with the result of ADD that the runtime kept.
func checkPrevResult(req wire.Request, s desired.Sandbox) error {
	var conf struct{ PrevResult *types100.Result }
	if err := json.Unmarshal(req.Config, &conf); err != nil {
		return &wire.Error{Code: codeDecode, Msg: "prevResult: not a result of CNI 1.0 or 1.1", Details: err.Error()}
	}
	if conf.PrevResult == nil {
		return nil
	}
	for _, addr := range s.Addrs {
		isIt := func(ip *types100.IPConfig) bool { return ip.Address.IP.Equal(net.IP(addr.AsSlice())) }
		if !slices.ContainsFunc(conf.PrevResult.IPs, isIt) {
			return checkFailed("prevResult: does not have the pod's address %s", addr)
		}
	}
	return nil
}

func checkFailed(format string, args ...any) error {
	return &wire.Error{Code: codeCheckFailed, Msg: fmt.Sprintf(format, args...)}
}

// status says whether ADD can be served (CNI specification 1.1, "STATUS").
func (n *Network) status() error {
	if !n.isReady() {
		return &wire.Error{Code: codeNotAvailable, Msg: "node " + n.cfg.NodeName + " has no pod CIDR yet, or the API server has not been reached"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.applied {
		return nil
	}
	return &wire.Error{
		Code: codeLimited, Msg: "the node's dataplane is not in place",
		Details: errors.Join(errors.New("no Apply has gone through yet"), n.lastErr).Error(),
	}
}

// gatewayOf is the next hop of a pod in addr's family. It is the same
// link-local address on every node; the node's end of the device answers for it.
func gatewayOf(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return pod.Gateway4
	}
	return pod.Gateway6
}
