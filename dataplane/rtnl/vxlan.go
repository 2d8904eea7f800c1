package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureVXLAN makes a VXLAN device in metadata mode, where a BPF program
// chooses the far end of every packet, and returns it set up. It asks for no
// neighbours, since MAC addresses mean nothing in it.
func (n *Namespace) EnsureVXLAN(name string, port, mtu int) (netlink.Link, error) {
	link, err := n.LinkByName(name)
	if IsNotFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		n.Writes++
		err = n.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: port, UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true})
		if err != nil {
			return nil, fmt.Errorf("create VXLAN device %s (UDP port %d): %w", name, port, err)
		}
		link, err = n.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("look up device %s: %w", name, err)
	}
	vxlan, ok := link.(*netlink.Vxlan)
	if !ok || !vxlan.FlowBased || vxlan.Port != port {
		return nil, fmt.Errorf("device %s exists but is not a VXLAN device in metadata mode on UDP port %d", name, port)
	}
	if err := n.EnsureMTU(link, mtu); err != nil {
		return nil, err
	}
	if link.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		n.Writes++
		if err := n.LinkSetARPOff(link); err != nil {
			return nil, fmt.Errorf("switch off neighbour resolution on %s: %w", name, err)
		}
	}
	if err := n.EnsureUp(link); err != nil {
		return nil, err
	}
	return link, nil
}
