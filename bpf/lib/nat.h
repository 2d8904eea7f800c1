/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Rewriting addresses and ports, with every checksum that covers them. */
#pragma once

#include "parse.h"

enum { CHECKSUM_TCP = 16, CHECKSUM_UDP = 6, CHECKSUM_ICMP = 2, CHECKSUM_IPV4 = 10 };
enum { IPV4_SRC = 12, IPV6_SRC = 8 };

/* replace_l4_sum updates a checksum that covers the addresses. BPF_F_IPV6
 * is right for IPv6 (no header checksum makes up for the change) but unknown
 * before kernel 6.16. */
static __always_inline long replace_l4_sum(struct __sk_buff *ctx, const struct pkt *pkt,
					   __u32 off, __u64 from, __u64 to, __u64 flags)
{
	if (!pkt->is_ipv4 && (flags & BPF_F_PSEUDO_HDR)) {
		long err = bpf_l4_csum_replace(ctx, off, from, to, flags | BPF_F_IPV6);

		if (!err)
			return 0;
	}
	return bpf_l4_csum_replace(ctx, off, from, to, flags);
}

/* write_addrs stores both addresses of the IP header at off, and repairs the
 * header's checksum. diff is the change of the sum of both. */
static __always_inline long write_addrs(struct __sk_buff *ctx, bool ipv4, __u32 off,
					const union addr *src, const union addr *dst, __s64 diff)
{
	if (ipv4) {
		__be32 both[2] = { src->w[3], dst->w[3] };

		if (bpf_skb_store_bytes(ctx, off + IPV4_SRC, both, sizeof(both), 0))
			return -1;
		return bpf_l3_csum_replace(ctx, off + CHECKSUM_IPV4, 0, diff, 0);
	}
	if (bpf_skb_store_bytes(ctx, off + IPV6_SRC, src, sizeof(*src), 0))
		return -1;
	return bpf_skb_store_bytes(ctx, off + IPV6_SRC + 16, dst, sizeof(*dst), 0);
}

/* addrs_diff is the change of the checksum over both addresses. The order of
 * the words does not matter to the sum. */
static __always_inline __s64 addrs_diff(const struct flow_key *from, const struct flow *to)
{
	return bpf_csum_diff((void *)from, 2 * sizeof(union addr), (void *)to, 2 * sizeof(union addr), 0);
}

/* write_ports changes sport and dport of TCP, UDP and ICMP echo. SCTP's
 * checksum (CRC32c, RFC 9260) cannot be repaired here: its ports must stay. */
static __always_inline long write_ports(struct __sk_buff *ctx, const struct pkt *pkt,
					const struct flow *to)
{
	__be16 old[2] = { pkt->tuple.sport, pkt->tuple.dport };
	__be16 new[2] = { to->sport, to->dport };
	__u32 old_word, new_word;
	__u32 l4 = pkt->l4_off;

	__builtin_memcpy(&old_word, old, 4);
	__builtin_memcpy(&new_word, new, 4);
	if (old_word == new_word)
		return 0;
	switch (pkt->tuple.protocol) {
	case IPPROTO_TCP:
		if (bpf_l4_csum_replace(ctx, l4 + CHECKSUM_TCP, old_word, new_word, 4))
			return -1;
		break;
	case IPPROTO_UDP:
		if (bpf_l4_csum_replace(ctx, l4 + CHECKSUM_UDP, old_word, new_word,
					4 | BPF_F_MARK_MANGLED_0))
			return -1;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		/* One of both is the identifier, the other is 0. */
		__be16 from = old[0] | old[1], id = new[0] | new[1];

		if (bpf_l4_csum_replace(ctx, l4 + CHECKSUM_ICMP, from, id, 2))
			return -1;
		return bpf_skb_store_bytes(ctx, l4 + 4, &id, 2, 0);
	}
	default:
		return -1;
	}
	return bpf_skb_store_bytes(ctx, l4, new, 4, 0);
}

/* write_inner_ports changes the ports in the packet an ICMP error quotes, and
 * the error's checksum, which covers them. */
static __always_inline long write_inner_ports(struct __sk_buff *ctx, const struct pkt *pkt,
					      const struct flow *to)
{
	bool echo = pkt->tuple.protocol == IPPROTO_ICMP || pkt->tuple.protocol == IPPROTO_ICMPV6;
	__be16 old[2] = { pkt->tuple.dport, pkt->tuple.sport };
	__be16 new[2] = { to->dport, to->sport };
	__u32 l4 = pkt->inner_off + (pkt->is_ipv4 ? 20 : 40);
	__be16 id = new[0] | new[1];
	__u32 old_word, new_word;

	__builtin_memcpy(&old_word, old, 4);
	__builtin_memcpy(&new_word, new, 4);
	if (old_word == new_word)
		return 0;
	if (bpf_l4_csum_replace(ctx, pkt->l4_off + CHECKSUM_ICMP, old_word, new_word, 4))
		return -1;
	if (echo)
		return bpf_skb_store_bytes(ctx, l4 + 4, &id, 2, 0);
	return bpf_skb_store_bytes(ctx, l4, new, 4, 0);
}

/* rewrite_error translates an ICMP error: the packet inside becomes what its
 * sender had sent, and the error goes to that sender. The checksum of the
 * quoted L4 header is left as it is; receivers do not look at it. */
PHASE int rewrite_error(struct __sk_buff *ctx, struct pkt *pkt, const struct flow *to)
{
	const union addr *outer_src;
	__s64 outer_diff, inner_diff;
	__u32 sum_off;

	if (!pkt || !to)
		return TC_ACT_SHOT;
	outer_src = &pkt->error_src;
	sum_off = pkt->l4_off + CHECKSUM_ICMP;
	inner_diff = addrs_diff(&pkt->tuple, to);
	outer_diff = inner_diff;
	if (same_addr(&pkt->error_src, &pkt->tuple.src))
		outer_src = &to->src; /* the far end itself sent it */
	else
		outer_diff = bpf_csum_diff((void *)&pkt->tuple.dst, 16, (void *)&to->dst, 16, 0);
	if (write_addrs(ctx, pkt->is_ipv4, ETH_HLEN, outer_src, &to->dst, outer_diff))
		return drop(DROP_REWRITE_FAILED);
	/* IPv4: the inner header's own checksum makes up for its addresses. */
	if (write_addrs(ctx, pkt->is_ipv4, pkt->inner_off, &to->dst, &to->src, inner_diff))
		return drop(DROP_REWRITE_FAILED);
	if (!pkt->is_ipv4) {
		if (replace_l4_sum(ctx, pkt, sum_off, 0, outer_diff, BPF_F_PSEUDO_HDR) ||
		    bpf_l4_csum_replace(ctx, sum_off, 0, inner_diff, 0))
			return drop(DROP_REWRITE_FAILED);
	}
	if (write_inner_ports(ctx, pkt, to))
		return drop(DROP_REWRITE_FAILED);
	pkt->error_src = *outer_src;
	return NEXT;
}

/* rewrite_packet translates anything else. Later fragments have no L4 header
 * to change; the first one's checksum covers them. */
PHASE int rewrite_packet(struct __sk_buff *ctx, struct pkt *pkt, const struct flow *to)
{
	long err = 0;
	__s64 diff;
	__u32 l4;

	if (!pkt || !to)
		return TC_ACT_SHOT;
	l4 = pkt->l4_off;
	diff = addrs_diff(&pkt->tuple, to);
	if (write_addrs(ctx, pkt->is_ipv4, ETH_HLEN, &to->src, &to->dst, diff))
		return drop(DROP_REWRITE_FAILED);
	if (!pkt->has_l4)
		return NEXT;
	switch (pkt->tuple.protocol) {
	case IPPROTO_TCP:
		err = replace_l4_sum(ctx, pkt, l4 + CHECKSUM_TCP, 0, diff, BPF_F_PSEUDO_HDR);
		break;
	case IPPROTO_UDP:
		err = replace_l4_sum(ctx, pkt, l4 + CHECKSUM_UDP, 0, diff,
				     BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
		break;
	case IPPROTO_ICMPV6:
		err = replace_l4_sum(ctx, pkt, l4 + CHECKSUM_ICMP, 0, diff, BPF_F_PSEUDO_HDR);
		break;
	}
	if (err || write_ports(ctx, pkt, to))
		return drop(DROP_REWRITE_FAILED);
	return NEXT;
}

/* rewrite makes the packet what its flow says. The tuple in pkt follows. */
static __always_inline int rewrite(struct __sk_buff *ctx, struct pkt *pkt, const struct flow *to)
{
	int verdict;

	pkt->is_known = 1;
	if (same_addr(&pkt->tuple.src, &to->src) && same_addr(&pkt->tuple.dst, &to->dst) &&
	    pkt->tuple.sport == to->sport && pkt->tuple.dport == to->dport)
		return NEXT; /* tracked, not translated */
	verdict = pkt->is_error ? rewrite_error(ctx, pkt, to) : rewrite_packet(ctx, pkt, to);
	if (verdict != NEXT)
		return verdict;
	count(COUNT_TRANSLATED);
	pkt->tuple.src = to->src;
	pkt->tuple.dst = to->dst;
	pkt->tuple.sport = to->sport;
	pkt->tuple.dport = to->dport;
	return NEXT;
}
