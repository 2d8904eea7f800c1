package conntrack

import (
	"testing"
	"time"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/service"
)

func TestFlowExpiry(t *testing.T) {
	const fin, rst = uint32(bpfobj.MapsFlowFlagsFLOW_FIN), uint32(bpfobj.MapsFlowFlagsFLOW_RST)
	const icmp = service.Protocol(1)
	for _, tc := range []struct {
		name           string
		protocol       service.Protocol
		forward, reply bpfobj.MapsFlow
		want           time.Duration
	}{
		{"a TCP connection that nobody answered goes soon", service.TCP, bpfobj.MapsFlow{Seen: 100}, bpfobj.MapsFlow{}, UnansweredTimeout},
		{"an open TCP connection outlives keep-alives", service.TCP, bpfobj.MapsFlow{Seen: 90}, bpfobj.MapsFlow{Seen: 100}, OpenTimeout},
		{"a half-closed TCP connection counts as open", service.TCP, bpfobj.MapsFlow{Seen: 100, Flags: fin}, bpfobj.MapsFlow{Seen: 99}, OpenTimeout},
		{"a TCP connection closed by both goes soon", service.TCP, bpfobj.MapsFlow{Seen: 100, Flags: fin}, bpfobj.MapsFlow{Seen: 99, Flags: fin}, ClosedTimeout},
		{"a reset TCP connection goes soon", service.TCP, bpfobj.MapsFlow{Seen: 100}, bpfobj.MapsFlow{Seen: 99, Flags: rst}, ClosedTimeout},
		{"an unanswered datagram goes soon", service.UDP, bpfobj.MapsFlow{Seen: 100}, bpfobj.MapsFlow{}, UnansweredTimeout},
		{"a datagram conversation lives longer", service.UDP, bpfobj.MapsFlow{Seen: 98}, bpfobj.MapsFlow{Seen: 100}, DatagramTimeout},
		{"an echo goes soon", icmp, bpfobj.MapsFlow{Seen: 100}, bpfobj.MapsFlow{Seen: 100}, EchoTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			end := 100 + uint32(tc.want/time.Second)
			if IsExpired(uint8(tc.protocol), tc.forward, tc.reply, end) {
				t.Errorf("expired after %s", tc.want)
			}
			if !IsExpired(uint8(tc.protocol), tc.forward, tc.reply, end+1) {
				t.Errorf("still there after more than %s", tc.want)
			}
		})
	}
}

func TestFlowFromTheFutureIsKept(t *testing.T) {
	if IsExpired(uint8(service.UDP), bpfobj.MapsFlow{Seen: 200}, bpfobj.MapsFlow{}, 100) {
		t.Error("a packet that passed while the table was read ended its flow")
	}
}
