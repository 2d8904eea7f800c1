package testnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Packet is an Ethernet frame with an IP packet of either family, for
// BPF_PROG_TEST_RUN.
type Packet struct {
	Src, Dst netip.Addr
	Protocol uint8
	// L4 is header and payload; Bytes fills in its checksum.
	L4 []byte
}

// UDP is a datagram's L4 part.
func UDP(sport, dport uint16, payload string) []byte {
	l4 := binary.BigEndian.AppendUint16(nil, sport)
	l4 = binary.BigEndian.AppendUint16(l4, dport)
	l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(payload)))
	return append(append(l4, 0, 0), payload...)
}

// TCP is the L4 part of a segment without options or payload. Flags are those
// of RFC 9293, section 3.1.
func TCP(sport, dport uint16, sequence, ack uint32, flags byte) []byte {
	l4 := binary.BigEndian.AppendUint16(nil, sport)
	l4 = binary.BigEndian.AppendUint16(l4, dport)
	l4 = binary.BigEndian.AppendUint32(l4, sequence)
	l4 = binary.BigEndian.AppendUint32(l4, ack)
	return append(l4, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
}

// ICMP is the L4 part of an ICMP message; rest is what follows the checksum.
func ICMP(kind, code byte, rest []byte) []byte {
	return append([]byte{kind, code, 0, 0}, rest...)
}

// checksumOffset is where an L4 header has its checksum.
func checksumOffset(protocol uint8) int {
	switch protocol {
	case 6:
		return 16
	case 17:
		return 6
	}
	return 2
}

// Bytes is the frame, with every checksum right.
func (p Packet) Bytes() []byte { return append(p.ethernet(), p.IP()...) }

func (p Packet) ethernet() []byte {
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	if p.Src.Is4() {
		return append(frame, 0x08, 0x00)
	}
	return append(frame, 0x86, 0xdd)
}

// IP is the packet without its Ethernet header.
func (p Packet) IP() []byte {
	l4 := append([]byte(nil), p.L4...)
	at := checksumOffset(p.Protocol)
	binary.BigEndian.PutUint16(l4[at:], 0)
	binary.BigEndian.PutUint16(l4[at:], p.l4Sum(l4))
	if p.Src.Is4() {
		header := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, p.Protocol, 0, 0}
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(l4)))
		header = append(append(header, p.Src.AsSlice()...), p.Dst.AsSlice()...)
		binary.BigEndian.PutUint16(header[10:], ^sum(header))
		return append(header, l4...)
	}
	header := []byte{0x60, 0, 0, 0, 0, 0, p.Protocol, 64}
	binary.BigEndian.PutUint16(header[4:], uint16(len(l4)))
	header = append(append(header, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	return append(header, l4...)
}

// l4Sum is the checksum of an L4 part whose checksum field is zero.
func (p Packet) l4Sum(l4 []byte) uint16 {
	var pseudo []byte
	if p.Protocol != 1 { // ICMP for IPv4 has no pseudo header
		pseudo = append(append(pseudo, p.Src.AsSlice()...), p.Dst.AsSlice()...)
		pseudo = append(pseudo, 0, 0, 0, p.Protocol)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(l4)))
	}
	return ^sum(append(pseudo, l4...))
}

// sum is the ones' complement sum of RFC 1071.
func sum(data []byte) uint16 {
	var s uint32
	for i, b := range data {
		s += uint32(b) << (8 * ((i + 1) % 2))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// ParseFrame takes a frame apart and fails if a checksum in it is wrong.
func ParseFrame(frame []byte) (Packet, error) {
	const ethernet = 14
	if len(frame) < ethernet+20 {
		return Packet{}, fmt.Errorf("frame has %d bytes", len(frame))
	}
	p, err := ParseIP(frame[ethernet:])
	if err != nil {
		return Packet{}, err
	}
	at := checksumOffset(p.Protocol)
	l4 := append([]byte(nil), p.L4...)
	if len(l4) < at+2 {
		return p, fmt.Errorf("L4 part has %d bytes", len(l4))
	}
	got := binary.BigEndian.Uint16(l4[at:])
	binary.BigEndian.PutUint16(l4[at:], 0)
	if want := p.l4Sum(l4); got != want {
		return p, fmt.Errorf("L4 checksum is %#04x, want %#04x", got, want)
	}
	return p, nil
}

// ParseIP takes an IP packet without options apart; the L4 part may be cut
// off. An IPv4 header's checksum must be right.
func ParseIP(data []byte) (Packet, error) {
	p := Packet{}
	switch data[0] >> 4 {
	case 4:
		if s := sum(data[:20]); s != 0xffff {
			return p, fmt.Errorf("IPv4 header sums up to %#04x, want 0xffff", s)
		}
		p.Protocol = data[9]
		p.Src, _ = netip.AddrFromSlice(data[12:16])
		p.Dst, _ = netip.AddrFromSlice(data[16:20])
		p.L4 = data[20:]
	case 6:
		p.Protocol = data[6]
		p.Src, _ = netip.AddrFromSlice(data[8:24])
		p.Dst, _ = netip.AddrFromSlice(data[24:40])
		p.L4 = data[40:]
	default:
		return p, fmt.Errorf("IP version %d", data[0]>>4)
	}
	return p, nil
}
