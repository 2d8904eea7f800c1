package dataplane

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"weft.dev/weft/dataplane/bpfobj"
)

// Counters are how many packets were forwarded, translated, rejected, and
// dropped for which reason, since the maps were created; summed over CPUs.
func (d *Dataplane) Counters() (map[string]uint64, error) {
	counters := map[string]uint64{}
	for i := range uint32(bpfobj.MapsCounterCOUNTERS) {
		var perCPU []uint64
		if err := d.loader.Map("counters").Lookup(&i, &perCPU); err != nil {
			return nil, fmt.Errorf("read counter %d: %w", i, err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		counters[counterNames[bpfobj.MapsCounter(i)]] = sum
	}
	return counters, nil
}

// counterNames are enum counter of bpf/lib/types.h, for people and metrics.
var counterNames = map[bpfobj.MapsCounter]string{
	bpfobj.MapsCounterCOUNT_FORWARDED:           "forwarded",
	bpfobj.MapsCounterCOUNT_TRANSLATED:          "translated",
	bpfobj.MapsCounterCOUNT_REJECTED:            "rejected",
	bpfobj.MapsCounterDROP_MALFORMED:            "drop_malformed",
	bpfobj.MapsCounterDROP_UNSUPPORTED_PROTOCOL: "drop_unsupported_protocol",
	bpfobj.MapsCounterDROP_SPOOFED_SOURCE:       "drop_spoofed_source",
	bpfobj.MapsCounterDROP_UNKNOWN_PEER:         "drop_unknown_peer",
	bpfobj.MapsCounterDROP_UNKNOWN_POD:          "drop_unknown_pod",
	bpfobj.MapsCounterDROP_NO_BACKEND:           "drop_no_backend",
	bpfobj.MapsCounterDROP_SOURCE_RANGE:         "drop_source_range",
	bpfobj.MapsCounterDROP_FRAGMENT:             "drop_fragment",
	bpfobj.MapsCounterDROP_PORTS_EXHAUSTED:      "drop_ports_exhausted",
	bpfobj.MapsCounterDROP_TABLE_FULL:           "drop_table_full",
	bpfobj.MapsCounterDROP_REJECT_LIMIT:         "drop_reject_limit",
	bpfobj.MapsCounterDROP_REWRITE_FAILED:       "drop_rewrite_failed",
}

// Dump writes what the kernel has been told, and its counters, as text in a
// stable order.
func (d *Dataplane) Dump(w io.Writer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	counters, err := d.Counters()
	if err != nil {
		return err
	}
	out := &errWriter{w: w}
	section(out, "node", d.dumpNode())
	section(out, "pods", d.dumpPods())
	section(out, "networks", d.dumpNetworks())
	section(out, "services", d.dumpServices())
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		lines = append(lines, fmt.Sprintf("%s\t%d", name, counters[name]))
	}
	section(out, "counters", lines)
	lines = nil
	usage := d.usage()
	for _, name := range slices.Sorted(maps.Keys(usage)) {
		lines = append(lines, fmt.Sprintf("%s\t%d of %d", name, usage[name][0], usage[name][1]))
	}
	section(out, "map entries", lines)
	return out.err
}

// section prints a heading and lines whose columns are separated by tabs.
func section(w io.Writer, name string, lines []string) {
	fmt.Fprintf(w, "%s:\n", name)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range lines {
		fmt.Fprintf(table, "  %s\n", line)
	}
	table.Flush()
}

// errWriter remembers the first error.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) Write(p []byte) (int, error) {
	if e.err == nil {
		_, e.err = e.w.Write(p)
	}
	return len(p), e.err
}

func (d *Dataplane) dumpNode() []string {
	var lines []string
	for _, n := range d.node.All() {
		lines = append(lines,
			"ipv4\t"+addrText(n.Addr4), "ipv6\t"+addrText(n.Addr6),
			fmt.Sprintf("uplink\tdevice %d", n.UplinkIfindex), fmt.Sprintf("overlay\tdevice %d", n.OverlayIfindex))
	}
	return lines
}

func (d *Dataplane) dumpPods() []string {
	var lines []string
	for addr, e := range d.endpoints.All() {
		name := ""
		for host, dev := range d.pods {
			if dev.ifindex == int(e.Ifindex) {
				name = fmt.Sprintf("%s\t%s", host, dev.pod.Name)
			}
		}
		lines = append(lines, fmt.Sprintf("%s\tdevice %d\t%s", addrText(addr), e.Ifindex, name))
	}
	slices.Sort(lines)
	return lines
}

var networkKinds = map[bpfobj.MapsNetworkKind]string{
	bpfobj.MapsNetworkKindNETWORK_CLUSTER:    "cluster pods",
	bpfobj.MapsNetworkKindNETWORK_SERVICE:    "services",
	bpfobj.MapsNetworkKindNETWORK_LOCAL_POD:  "own pods",
	bpfobj.MapsNetworkKindNETWORK_LOCAL_NODE: "own address",
	bpfobj.MapsNetworkKindNETWORK_PEER_POD:   "pods of peer",
	bpfobj.MapsNetworkKindNETWORK_PEER_NODE:  "peer",
}

func (d *Dataplane) dumpNetworks() []string {
	var lines []string
	for key, n := range d.networks.All() {
		addr, bits := netip.AddrFrom16(key.Addr), int(key.Prefixlen)
		if addr.Is4In6() {
			addr, bits = addr.Unmap(), bits-96
		}
		line := fmt.Sprintf("%s\t%s", netip.PrefixFrom(addr, bits), networkKinds[bpfobj.MapsNetworkKind(n.Kind)])
		if text := addrText(n.Node); text != "none" {
			line += "\t" + text
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

var protocolNames = map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}

func (d *Dataplane) dumpServices() []string {
	entries := d.services.Entries()
	list := func(id, n uint32) string {
		var backends []string
		for slot := range n {
			b := entries.Backends[bpfobj.MapsBackendKey{List: id, Slot: slot}]
			backends = append(backends, addrPortText(b.Addr, b.Port))
		}
		if n == 0 {
			return "nobody"
		}
		return strings.Join(backends, " ")
	}
	var lines []string
	for key, s := range entries.Services {
		line := fmt.Sprintf("%s %s\tinside: %s", protocolNames[key.Protocol], addrPortText(key.Addr, key.Port), list(s.InternalList, s.InternalCount))
		if s.ExternalList != s.InternalList {
			line += "\toutside: " + list(s.ExternalList, s.ExternalCount)
		}
		if s.AffinitySeconds != 0 {
			line += fmt.Sprintf("\taffinity %ds", s.AffinitySeconds)
		}
		if s.Flags&uint32(bpfobj.MapsServiceFlagsSERVICE_KEEP_SOURCE) != 0 {
			line += "\tkeep source"
		}
		if s.Flags&uint32(bpfobj.MapsServiceFlagsSERVICE_DROP_EXTERNAL) != 0 {
			line += "\tdrop outside"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func addrText(a bpfobj.MapsAddr) string {
	if a == (bpfobj.MapsAddr{}) {
		return "none"
	}
	return netip.AddrFrom16(a.B).Unmap().String()
}

// addrPortText takes the port in network byte order, as maps hold it.
func addrPortText(a bpfobj.MapsAddr, port uint16) string {
	host := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, port))
	return netip.AddrPortFrom(netip.AddrFrom16(a.B).Unmap(), host).String()
}
