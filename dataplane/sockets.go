package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/service"
)

// A UDP socket of the node's own processes that connects to a frontend gets
// its backend then, for as long as it lives. When the backend no longer
// serves the frontend, the socket is ended: a read fails with ECONNABORTED, a
// write with EDESTADDRREQ, and the process connects anew. (TCP sockets are left alone:
// established connections outlive their endpoint, as everywhere.)

// frontendPort is a UDP frontend as map entries name it.
type frontendPort struct {
	addr bpfobj.MapsAddr
	port uint16 // network byte order
}

// endStaleSockets ends the connected UDP sockets that have a backend which
// the frontend they asked for does not have any more. It does nothing unless
// UDP services have changed since it last went through.
func (d *Dataplane) endStaleSockets(frontends []service.Frontend) error {
	isTCP := func(f service.Frontend) bool { return f.Protocol != service.UDP }
	udp := slices.DeleteFunc(slices.Clone(frontends), isTCP)
	unchanged := slices.EqualFunc(udp, d.udp, func(a, b service.Frontend) bool { return a.Equal(&b) })
	if d.udp != nil && unchanged {
		return nil
	}
	stale, err := d.staleSockets(udp)
	if err == nil && len(stale) > 0 {
		err = endSockets(stale)
	}
	if err != nil {
		return fmt.Errorf("end UDP sockets of removed backends: %w", err)
	}
	if d.udp = udp; d.udp == nil {
		d.udp = []service.Frontend{}
	}
	return nil
}

// staleSockets lists sockets, by cookie, whose backend is not among those of
// a UDP frontend that they may have asked for. TCP sockets can be among them.
func (d *Dataplane) staleSockets(udp []service.Frontend) (map[uint64][]netip.AddrPort, error) {
	serves := map[frontendPort][]netip.AddrPort{}
	for _, f := range udp {
		key := frontendPort{bpfobj.MapsAddr{B: f.Addr.As16()}, networkOrder(f.Port)}
		for _, b := range f.Internal {
			serves[key] = append(serves[key], netip.AddrPortFrom(b.Addr, b.Port))
		}
	}
	stale := map[uint64][]netip.AddrPort{}
	var key bpfobj.MapsSocketKey
	var asked bpfobj.MapsSocketPeer
	entries := d.loader.Map("sockets").Iterate()
	for entries.Next(&key, &asked) {
		backend := netip.AddrPortFrom(netip.AddrFrom16(key.Addr.B).Unmap(), networkOrder(key.Port))
		if !slices.Contains(serves[frontendPort{asked.Addr, asked.Port}], backend) {
			stale[key.Cookie] = append(stale[key.Cookie], backend)
		}
	}
	return stale, entries.Err()
}

// networkOrder swaps between host and network byte order.
func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// diagRequest is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h);
// sock_diag(7).
type diagRequest struct {
	family uint8
	states uint32
	id     []byte // struct inet_diag_sockid, or nil for every socket
}

const (
	diagIDLen      = 48
	diagIDOffset   = 4 // in struct inet_diag_msg
	establishedBit = 1 << 1
)

// Len implements nl.NetlinkRequestData.
func (r *diagRequest) Len() int { return 8 + diagIDLen }

// Serialize implements nl.NetlinkRequestData.
func (r *diagRequest) Serialize() []byte {
	out := make([]byte, r.Len())
	out[0], out[1] = r.family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(out[4:], r.states)
	copy(out[8:], r.id)
	return out
}

// endSockets ends the connected UDP sockets of this network namespace that
// have one of these cookies and one of its peers.
func endSockets(stale map[uint64][]netip.AddrPort) error {
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		list.AddData(&diagRequest{family: family, states: establishedBit})
		sockets, err := list.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
		errs = append(errs, err)
		for _, message := range sockets {
			if len(message) < diagIDOffset+diagIDLen {
				continue
			}
			id := message[diagIDOffset : diagIDOffset+diagIDLen]
			if cookie, peer := parseSocketID(family, id); slices.Contains(stale[cookie], peer) {
				errs = append(errs, endSocket(family, id))
			}
		}
	}
	return errors.Join(errs...)
}

// parseSocketID reads struct inet_diag_sockid: ports, 16 bytes of source and
// of destination, interface, cookie in two halves.
func parseSocketID(family uint8, id []byte) (cookie uint64, peer netip.AddrPort) {
	addr := netip.AddrFrom4([4]byte(id[20:24]))
	if family == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(id[20:36])).Unmap()
	}
	low, high := binary.NativeEndian.Uint32(id[40:]), binary.NativeEndian.Uint32(id[44:])
	return uint64(high)<<32 | uint64(low), netip.AddrPortFrom(addr, binary.BigEndian.Uint16(id[2:]))
}

// endSocket is what `ss --kill` does (CONFIG_INET_DIAG_DESTROY).
func endSocket(family uint8, id []byte) error {
	request := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	request.AddData(&diagRequest{family: family, states: establishedBit, id: id})
	_, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // closed meanwhile
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.New("this kernel cannot end sockets: it lacks CONFIG_INET_DIAG_DESTROY")
	}
	return err
}
