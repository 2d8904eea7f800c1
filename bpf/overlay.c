// SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
/* The tunnel device weft_vxlan (VXLAN, RFC 7348, metadata mode).
 *
 *   overlay_egress   tcx egress: packets for pods of other nodes, from local
 *                    pods and from the host's stack; chooses the far end.
 *   overlay_ingress  tcx ingress: packets from other nodes, unwrapped.
 *
 * Reads networks, nodes, endpoints, services, backends; reads and writes
 * flows, affinities, fragments. */
#include "lib/balance.h"

char _license[] SEC("license") = "GPL";

/* The virtual network identifier all nodes of a cluster share. */
#define VNI 1

static __always_inline int set_tunnel(struct __sk_buff *ctx, const union addr *to,
				      const struct node *node)
{
	struct bpf_tunnel_key key = { .tunnel_id = VNI, .tunnel_ttl = 64 };
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (is_ipv4(to)) {
		key.remote_ipv4 = bpf_ntohl(to->w[3]);
		key.local_ipv4 = bpf_ntohl(node->addr4.w[3]);
	} else {
		flags = BPF_F_TUNINFO_IPV6;
		__builtin_memcpy(key.remote_ipv6, to->b, 16);
		__builtin_memcpy(key.local_ipv6, node->addr6.b, 16);
	}
	if (bpf_skb_set_tunnel_key(ctx, &key, sizeof(key), flags))
		return drop(DROP_REWRITE_FAILED);
	return TC_ACT_UNSPEC;
}

SEC("tcx/egress")
int overlay_egress(struct __sk_buff *ctx)
{
	struct node *node = this_node();
	struct pkt pkt = {};
	struct network *to;
	int verdict;

	verdict = parse(ctx, &pkt);
	if (verdict != NEXT)
		return TC_ACT_SHOT; /* nothing but IP crosses the overlay */
	if (!node)
		return drop(DROP_UNKNOWN_PEER);
	/* Answers of this node's own sockets to what balance() sent them. */
	if (is_node_addr(node, &pkt.tuple.src)) {
		verdict = translate(ctx, &pkt);
		if (verdict != NEXT)
			return verdict;
	}
	to = network_of(&pkt.tuple.dst);
	if (!to || (to->kind != NETWORK_PEER_POD && to->kind != NETWORK_PEER_NODE))
		return drop(DROP_UNKNOWN_PEER);
	return set_tunnel(ctx, &to->node, node);
}

/* tunnel_source finds who sent the packet; false if it has no tunnel key or
 * belongs to another virtual network. */
static __always_inline bool tunnel_source(struct __sk_buff *ctx, union addr *from)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), 0)) {
		map_ipv4(from, bpf_htonl(key.remote_ipv4));
		return key.tunnel_id == VNI;
	}
	if (!bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(from->b, key.remote_ipv6, 16);
		return key.tunnel_id == VNI;
	}
	return false;
}

/* check_peer accepts packets only from a node of the cluster, and only with
 * a source that is behind that node. */
static __always_inline int check_peer(struct __sk_buff *ctx, const struct pkt *pkt)
{
	const union addr *src = pkt->is_error ? &pkt->error_src : &pkt->tuple.src;
	struct network *network;
	union addr from;

	if (!tunnel_source(ctx, &from))
		return drop(DROP_UNKNOWN_PEER);
	network = network_of(src);
	if (!network || (network->kind != NETWORK_PEER_POD && network->kind != NETWORK_PEER_NODE))
		return drop(DROP_UNKNOWN_PEER);
	if (!same_addr(&network->node, &from))
		return drop(DROP_UNKNOWN_PEER);
	return NEXT;
}

SEC("tcx/ingress")
int overlay_ingress(struct __sk_buff *ctx)
{
	struct node *node = this_node();
	struct pkt pkt = {};
	int verdict;

	if (!node)
		return drop(DROP_UNKNOWN_PEER);
	verdict = parse(ctx, &pkt);
	if (verdict != NEXT)
		return TC_ACT_SHOT;
	verdict = check_peer(ctx, &pkt);
	if (verdict != NEXT)
		return verdict;
	/* The inner MAC addresses mean nothing. */
	bpf_skb_change_type(ctx, PACKET_HOST);
	verdict = steer(ctx, &pkt, node, FROM_OUTSIDE);
	if (verdict != NEXT)
		return verdict;
	return forward(ctx, &pkt, node);
}
