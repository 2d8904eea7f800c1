/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* The last phase: where a packet goes, by its destination alone. */
#pragma once

#include "reject.h"

static __always_inline struct node *this_node(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&nodes, &zero);
}

/* to_overlay hands the packet to the tunnel device, whose own program
 * chooses the far end by destination (overlay.c). */
static __always_inline int to_overlay(const struct node *node)
{
	count(COUNT_FORWARDED);
	return bpf_redirect(node->overlay_ifindex, 0);
}

/* to_uplink sends the packet out with the kernel's own choice of next hop. */
static __always_inline int to_uplink(const struct node *node)
{
	count(COUNT_FORWARDED);
	return bpf_redirect_neigh(node->uplink_ifindex, NULL, 0, 0);
}

/* to_endpoint delivers straight into the pod's namespace. */
static __always_inline int to_endpoint(const struct endpoint *ep)
{
	count(COUNT_FORWARDED);
	return bpf_redirect_peer(ep->ifindex, 0);
}

static __always_inline bool is_node_addr(const struct node *node, const union addr *a)
{
	return same_addr(a, &node->addr4) || same_addr(a, &node->addr6);
}

/* forward sends a packet to its destination. What is for this node, or has
 * to be routed by the host, goes on to the host's stack. */
PHASE int forward(struct __sk_buff *ctx, const struct pkt *pkt, const struct node *node)
{
	const union addr *src, *dst;
	struct network *network;
	struct endpoint *ep;

	if (!pkt || !node)
		return TC_ACT_SHOT;
	src = pkt->is_error ? &pkt->error_src : &pkt->tuple.src;
	dst = &pkt->tuple.dst;
	ep = bpf_map_lookup_elem(&endpoints, dst);
	if (ep)
		return to_endpoint(ep);
	network = network_of(dst);
	switch (network ? network->kind : 0) {
	case NETWORK_LOCAL_NODE:
		return TC_ACT_UNSPEC;
	case NETWORK_PEER_POD:
		return node->overlay_ifindex ? to_overlay(node) : to_uplink(node);
	case NETWORK_PEER_NODE:
		/* A pod's address means nothing to the network between nodes. */
		if (node->overlay_ifindex && !is_node_addr(node, src))
			return to_overlay(node);
		return to_uplink(node);
	case NETWORK_LOCAL_POD:
	case NETWORK_CLUSTER:
		return drop(DROP_UNKNOWN_POD);
	case NETWORK_SERVICE:
		/* No frontend has this address and port. */
		return pkt->has_ports ? reject(ctx, pkt) : drop(DROP_FRAGMENT);
	}
	/* The host routes it, unless it bears the node's address already, or that
	 * of a frontend which no device has: the host would take those for
	 * forgeries (a martian source; with rp_filter, one of the wrong device). */
	if (is_node_addr(node, src) || (pkt->is_known && !network_of(src)))
		return to_uplink(node);
	return TC_ACT_UNSPEC;
}
