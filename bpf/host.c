// SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
/* The uplink: the device that carries the node's address.
 *
 *   uplink_ingress  tcx ingress: every packet that arrives at the node;
 *                   frontends for clients outside, answers to translated
 *                   flows, and with native routing pods of other nodes.
 *   uplink_egress   tcx egress: every packet that leaves it; pods get the
 *                   node's address towards everything outside the cluster.
 *
 * Reads endpoints, networks, nodes, services, backends; reads and writes
 * flows, affinities, fragments. */
#include "lib/balance.h"

char _license[] SEC("license") = "GPL";

/* track remembers a connection from outside straight to a pod, so that its
 * answers are not taken for new connections to be masqueraded. The packet goes
 * on whether or not that works. */
static __noinline void track(const struct pkt *pkt)
{
	struct flow same = {
		.src = pkt->tuple.src, .dst = pkt->tuple.dst,
		.sport = pkt->tuple.sport, .dport = pkt->tuple.dport,
	};

	if (!pkt->has_ports || pkt->is_error || network_of(&pkt->tuple.src))
		return;
	bind_flow(&pkt->tuple, &same, PORT_KEEP);
}

/* deliver takes what is for pods and services; the rest is the host's. */
static __always_inline int deliver(struct __sk_buff *ctx, const struct pkt *pkt)
{
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &pkt->tuple.dst);
	struct network *network;

	if (ep) {
		track(pkt);
		return to_endpoint(ep);
	}
	network = network_of(&pkt->tuple.dst);
	if (network && network->kind == NETWORK_SERVICE)
		return pkt->has_ports ? reject(ctx, pkt) : drop(DROP_FRAGMENT);
	return TC_ACT_UNSPEC;
}

SEC("tcx/ingress")
int uplink_ingress(struct __sk_buff *ctx)
{
	struct node *node = this_node();
	struct pkt pkt = {};
	int verdict;

	if (!node)
		return TC_ACT_UNSPEC;
	verdict = parse(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	verdict = steer(ctx, &pkt, node, FROM_OUTSIDE);
	if (verdict != NEXT)
		return verdict;
	return pkt.is_known ? forward(ctx, &pkt, node) : deliver(ctx, &pkt);
}

/* masquerade gives a pod's new flow to the outside the node's address. */
static __noinline int masquerade(struct __sk_buff *ctx, struct pkt *pkt,
				      const struct node *node)
{
	const union addr *src = pkt->is_error ? &pkt->error_src : &pkt->tuple.src;
	struct flow to = {};
	int verdict;

	if (!bpf_map_lookup_elem(&endpoints, src) || network_of(&pkt->tuple.dst))
		return NEXT;
	if (pkt->is_error)
		return drop(DROP_UNSUPPORTED_PROTOCOL); /* about no flow of ours */
	if (!pkt->has_ports)
		return drop(pkt->is_fragment ? DROP_FRAGMENT : DROP_UNSUPPORTED_PROTOCOL);
	to.src = pkt->is_ipv4 ? node->addr4 : node->addr6;
	if (!to.src.d[0] && !to.src.d[1])
		return drop(DROP_UNSUPPORTED_PROTOCOL);
	to.dst = pkt->tuple.dst;
	to.sport = pkt->tuple.sport;
	to.dport = pkt->tuple.dport;
	verdict = bind_flow(&pkt->tuple, &to, PORT_CHOOSE);
	if (verdict != NEXT)
		return drop(verdict);
	return rewrite(ctx, pkt, &to);
}

SEC("tcx/egress")
int uplink_egress(struct __sk_buff *ctx)
{
	struct node *node = this_node();
	struct pkt pkt = {};
	int verdict;

	if (!node)
		return TC_ACT_UNSPEC;
	verdict = parse(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	verdict = translate(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	if (!pkt.is_known) {
		verdict = masquerade(ctx, &pkt, node);
		if (verdict != NEXT)
			return verdict;
	}
	return TC_ACT_UNSPEC;
}
