// SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
/* The host side of each pod's veth pair.
 *
 *   pod_egress   tcx ingress: every packet a pod sends.
 *   pod_ingress  tcx egress: packets the host's own stack sends to a pod.
 *                (Other pods' and nodes' packets reach it by redirect_peer
 *                and do not pass here.)
 *
 * Reads endpoints, networks, nodes, services, backends; reads and writes
 * flows, affinities, fragments. */
#include "lib/balance.h"

char _license[] SEC("license") = "GPL";

/* is_link_local: fe80::/10 and the unspecified address, which neighbour
 * discovery uses before a pod has anything else (RFC 4861). */
static __always_inline bool is_link_local(const union addr *a)
{
	return (a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80) || (a->d[0] == 0 && a->d[1] == 0);
}

/* check_source drops what does not bear the pod's own address. */
static __always_inline int check_source(struct __sk_buff *ctx, const struct pkt *pkt)
{
	const union addr *src = pkt->is_error ? &pkt->error_src : &pkt->tuple.src;
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, src);

	if (ep && ep->ifindex == ctx->ifindex)
		return NEXT;
	if (!pkt->is_ipv4 && is_link_local(src))
		return TC_ACT_UNSPEC;
	return drop(DROP_SPOOFED_SOURCE);
}

/* keep_apart looks at what opens a flow straight to another pod: if the pod
 * uses a service from the same port and that has chosen the same backend, the
 * answers of both are alike, so this flow takes a source port of its own.
 * Until the service's flow begins nothing tells the two apart, and a direct
 * flow in use then changes its port. */
PHASE int keep_apart(struct __sk_buff *ctx, struct pkt *pkt)
{
	struct flow_key answer = {};
	struct flow other, to = {};
	struct flow *known;
	int verdict;

	if (!pkt)
		return TC_ACT_SHOT;
	to.src = pkt->tuple.src;
	to.dst = pkt->tuple.dst;
	to.sport = pkt->tuple.sport;
	to.dport = pkt->tuple.dport;
	to.flags = FLOW_APART;
	opposite(&pkt->tuple, &to, &answer, &other);
	known = bpf_map_lookup_elem(&flows, &answer);
	if (!known || !(known->flags & FLOW_REPLY))
		return NEXT;
	verdict = bind_flow(&pkt->tuple, &to, PORT_PREFER);
	if (verdict != NEXT)
		return verdict;
	return rewrite(ctx, pkt, &to);
}

/* may_clash: a datagram, or the first packet of a connection, of no flow. */
static __always_inline bool may_clash(const struct pkt *pkt)
{
	if (pkt->is_known || pkt->is_error || !pkt->has_ports)
		return false;
	if (pkt->tuple.protocol == IPPROTO_TCP)
		return (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return pkt->tuple.protocol == IPPROTO_UDP;
}

SEC("tcx/ingress")
int pod_egress(struct __sk_buff *ctx)
{
	struct node *node = this_node();
	struct pkt pkt = {};
	int verdict;

	if (!node)
		return drop(DROP_UNKNOWN_POD);
	verdict = parse(ctx, &pkt);
	if (verdict == TC_ACT_UNSPEC && ctx->protocol != bpf_htons(ETH_P_ARP))
		return drop(DROP_UNSUPPORTED_PROTOCOL);
	if (verdict != NEXT)
		return verdict;
	verdict = check_source(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	verdict = steer(ctx, &pkt, node, FROM_NODE);
	if (verdict != NEXT)
		return verdict;
	verdict = may_clash(&pkt) ? keep_apart(ctx, &pkt) : NEXT;
	if (verdict != NEXT)
		return verdict;
	/* NetworkPolicy takes its place here: addresses are final, and nothing
	 * has been sent. */
	return forward(ctx, &pkt, node);
}

SEC("tcx/egress")
int pod_ingress(struct __sk_buff *ctx)
{
	struct pkt pkt = {};
	int verdict;

	verdict = parse(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	/* Answers of this node's own sockets to what balance() sent them. */
	verdict = translate(ctx, &pkt);
	return verdict == NEXT ? TC_ACT_UNSPEC : verdict;
}
