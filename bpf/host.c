// SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
/* The uplink: the device that carries the node's address.
 *
 *   uplink_ingress  tcx ingress: every packet that arrives at the node.
 *   uplink_egress   tcx egress: every packet that leaves it.
 *
 * Reads endpoints. */
#include "lib/forward.h"

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("tcx/ingress")
int uplink_ingress(struct __sk_buff *ctx)
{
	struct endpoint *ep;
	struct pkt pkt = {};
	int verdict;

	verdict = parse(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	ep = bpf_map_lookup_elem(&endpoints, &pkt.tuple.dst);
	if (ep)
		return to_endpoint(ep);
	return TC_ACT_UNSPEC;
}

SEC("tcx/egress")
int uplink_egress(struct __sk_buff *ctx)
{
	return TC_ACT_UNSPEC;
}
