// Package conntrack expires the flows that the tc programs track.
//
// A flow has two map entries, one per direction, each of which knows when its
// last packet passed (bpf/lib/conntrack.h). The programs never look at the
// time: they would rather follow an old flow than break it. So expiry is for
// this package, and for the map itself, which evicts what was used least
// recently when it is full.
package conntrack

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft.dev/weft/dataplane/bpfobj"
	"weft.dev/weft/dataplane/service"
)

// How long a flow lives after its last packet. The first four are the
// defaults of Linux (Documentation/networking/nf_conntrack-sysctl.rst) or,
// for connections that are open, enough for two TCP keep-alives
// (tcp_keepalive_time, 7200 s, then probes).
const (
	UnansweredTimeout = 60 * time.Second
	DatagramTimeout   = 120 * time.Second
	EchoTimeout       = 30 * time.Second
	ClosedTimeout     = 30 * time.Second
	OpenTimeout       = 8000 * time.Second
)

// IsExpired decides by a flow's two directions whether it is over. now and
// the entries' times are seconds since boot.
func IsExpired(protocol uint8, forward, reply bpfobj.MapsFlow, now uint32) bool {
	last := max(forward.Seen, reply.Seen)
	if now <= last {
		return false
	}
	return time.Duration(now-last)*time.Second > timeout(protocol, forward, reply)
}

func timeout(protocol uint8, forward, reply bpfobj.MapsFlow) time.Duration {
	const fin, rst = uint32(bpfobj.MapsFlowFlagsFLOW_FIN), uint32(bpfobj.MapsFlowFlagsFLOW_RST)
	switch service.Protocol(protocol) {
	case service.TCP:
		switch {
		case (forward.Flags|reply.Flags)&rst != 0, forward.Flags&reply.Flags&fin != 0:
			return ClosedTimeout
		case reply.Seen == 0:
			return UnansweredTimeout
		}
		return OpenTimeout
	case service.SCTP:
		return OpenTimeout
	case service.UDP:
		if reply.Seen == 0 {
			return UnansweredTimeout
		}
		return DatagramTimeout
	}
	return EchoTimeout
}

// Table is the kernel's flows.
type Table struct{ m *ebpf.Map }

// New returns the flows in m, which stays the caller's to close.
func New(m *ebpf.Map) *Table { return &Table{m} }

// Expire deletes the flows that are over at now, a time since boot, and
// reports how many entries it found and how many it deleted. Packets may pass
// meanwhile: a flow that is used again just then is made anew.
func (t *Table) Expire(now time.Duration) (found, deleted int, err error) {
	entries, err := t.read()
	if err != nil {
		return 0, 0, err
	}
	seconds := uint32(now / time.Second)
	for key, flow := range entries {
		if flow.Flags&uint32(bpfobj.MapsFlowFlagsFLOW_REPLY) != 0 {
			if _, ok := entries[opposite(key, flow)]; ok {
				continue // goes with its forward entry
			}
		}
		other := opposite(key, flow)
		if !IsExpired(key.Protocol, flow, entries[other], seconds) {
			continue
		}
		for _, k := range []bpfobj.MapsFlowKey{key, other} {
			err := t.m.Delete(&k)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				continue
			}
			if err != nil {
				return len(entries), deleted, fmt.Errorf("delete flow: %w", err)
			}
			deleted++
		}
	}
	return len(entries), deleted, nil
}

// batch is how many entries one system call reads.
const batch = 4096

// read copies the whole map. Entries that come and go meanwhile may be
// missed, and are seen next time.
func (t *Table) read() (map[bpfobj.MapsFlowKey]bpfobj.MapsFlow, error) {
	entries := map[bpfobj.MapsFlowKey]bpfobj.MapsFlow{}
	keys, values := make([]bpfobj.MapsFlowKey, batch), make([]bpfobj.MapsFlow, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			entries[keys[i]] = values[i]
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read flows: %w", err)
		}
	}
}

// opposite is the key of the flow's other direction.
func opposite(key bpfobj.MapsFlowKey, flow bpfobj.MapsFlow) bpfobj.MapsFlowKey {
	return bpfobj.MapsFlowKey{
		Src: flow.Dst, Dst: flow.Src, Sport: flow.Dport, Dport: flow.Sport, Protocol: key.Protocol,
	}
}

// SinceBoot is the clock of the entries: CLOCK_BOOTTIME.
func SinceBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
