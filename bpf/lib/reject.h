/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Answers to packets that have nowhere to go: RST for TCP (RFC 9293, section
 * 3.10.7.1), ICMP port unreachable for the rest (RFC 1122, 3.2.2.1; RFC 4443,
 * 3.1). The packet is turned into its answer and sent back where it came
 * from. */
#pragma once

#include "parse.h"

/* Answers per second and CPU; Linux allows 1000 ICMP messages per second
 * (net.ipv4.icmp_msgs_per_sec). */
#define REJECTS_PER_SECOND 1000

struct tcp_header {
	__be16 sport;
	__be16 dport;
	__be32 sequence;
	__be32 ack;
	__u8 offset; /* header length in 32-bit words, upper half */
	__u8 flags;
	__be16 window;
	__sum16 checksum;
	__be16 urgent;
};
_Static_assert(sizeof(struct tcp_header) == 20, "RFC 9293");

struct pseudo_header { /* RFC 8200, 8.1; IPv4's is the same but for the addresses */
	union addr src;
	union addr dst;
	__be32 length;
	__be32 protocol;
};

/* How much of the packet an ICMP error quotes: IP header and 8 bytes. */
enum { QUOTE_IPV4 = 28, QUOTE_IPV6 = 48 };

static __always_inline __sum16 fold(__s64 sum)
{
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline bool may_reject(void)
{
	__u32 zero = 0, now = bpf_ktime_get_boot_ns() / 1000000000ull;
	struct reject_budget *budget = bpf_map_lookup_elem(&reject_budgets, &zero);

	if (!budget)
		return false;
	if (budget->second != now) {
		budget->second = now;
		budget->sent = 0;
	}
	return budget->sent++ < REJECTS_PER_SECOND;
}

/* l4_sum is the checksum of an L4 header under its pseudo header. IPv4-mapped
 * prefixes cancel out of it, since ffff is zero in ones' complement. */
static __always_inline __sum16 l4_sum(const struct pkt *pkt, __u8 protocol, void *l4, __u32 length)
{
	struct pseudo_header pseudo = {
		.src = pkt->tuple.dst, .dst = pkt->tuple.src,
		.length = bpf_htonl(length), .protocol = bpf_htonl(protocol),
	};
	__s64 sum = bpf_csum_diff(NULL, 0, (void *)&pseudo, sizeof(pseudo), 0);

	return fold(bpf_csum_diff(NULL, 0, l4, length, sum));
}

/* write_headers stores swapped MAC addresses and an IP header back to the
 * sender. The packet has its final length already. */
static __noinline int write_headers(struct __sk_buff *ctx, const struct pkt *pkt, __u8 protocol,
				    __u32 length)
{
	__u8 mac[12], swapped[12];

	if (bpf_skb_load_bytes(ctx, 0, mac, sizeof(mac)))
		return -1;
	__builtin_memcpy(swapped, mac + 6, 6);
	__builtin_memcpy(swapped + 6, mac, 6);
	if (bpf_skb_store_bytes(ctx, 0, swapped, sizeof(swapped), 0))
		return -1;
	if (pkt->is_ipv4) {
		struct ipv4_header ip = {
			.version_ihl = 0x45, .ttl = 64, .protocol = protocol,
			.total_length = bpf_htons(sizeof(ip) + length),
			.src = pkt->tuple.dst.w[3], .dst = pkt->tuple.src.w[3],
		};

		ip.checksum = fold(bpf_csum_diff(NULL, 0, (void *)&ip, sizeof(ip), 0));
		return bpf_skb_store_bytes(ctx, ETH_HLEN, &ip, sizeof(ip), 0);
	}
	struct ipv6_header ip = {
		.version_class_label = bpf_htonl(6u << 28),
		.payload_length = bpf_htons(length),
		.next_header = protocol, .hop_limit = 64,
		.src = pkt->tuple.dst, .dst = pkt->tuple.src,
	};

	return bpf_skb_store_bytes(ctx, ETH_HLEN, &ip, sizeof(ip), 0);
}

static __noinline int make_reset(struct __sk_buff *ctx, const struct pkt *pkt)
{
	struct tcp_header in, out = {};
	__u32 l4 = pkt->l4_off, length;

	if (bpf_skb_load_bytes(ctx, l4, &in, sizeof(in)))
		return -1;
	length = ctx->len - l4 - (in.offset >> 4) * 4;
	out.sport = in.dport;
	out.dport = in.sport;
	out.offset = (sizeof(out) / 4) << 4;
	out.flags = TCP_RST;
	if (in.flags & TCP_ACK) {
		out.sequence = in.ack;
	} else {
		length += !!(in.flags & TCP_SYN) + !!(in.flags & TCP_FIN);
		out.flags |= TCP_ACK;
		out.ack = bpf_htonl(bpf_ntohl(in.sequence) + length);
	}
	out.checksum = l4_sum(pkt, IPPROTO_TCP, &out, sizeof(out));
	if (bpf_skb_change_tail(ctx, l4 + sizeof(out), 0) ||
	    write_headers(ctx, pkt, IPPROTO_TCP, sizeof(out)))
		return -1;
	return bpf_skb_store_bytes(ctx, l4, &out, sizeof(out), 0);
}

static __noinline int make_unreachable4(struct __sk_buff *ctx, const struct pkt *pkt)
{
	struct {
		struct icmp_header icmp;
		__u8 quote[QUOTE_IPV4];
	} out = { .icmp = { .type = 3, .code = 3 } };

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, out.quote, sizeof(out.quote)))
		return -1;
	out.icmp.checksum = fold(bpf_csum_diff(NULL, 0, (void *)&out, sizeof(out), 0));
	if (bpf_skb_change_tail(ctx, ETH_HLEN + sizeof(struct ipv4_header) + sizeof(out), 0) ||
	    write_headers(ctx, pkt, IPPROTO_ICMP, sizeof(out)))
		return -1;
	return bpf_skb_store_bytes(ctx, ETH_HLEN + sizeof(struct ipv4_header), &out, sizeof(out), 0);
}

static __noinline int make_unreachable6(struct __sk_buff *ctx, const struct pkt *pkt)
{
	struct {
		struct icmp_header icmp;
		__u8 quote[QUOTE_IPV6];
	} out = { .icmp = { .type = 1, .code = 4 } };

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, out.quote, sizeof(out.quote)))
		return -1;
	out.icmp.checksum = l4_sum(pkt, IPPROTO_ICMPV6, &out, sizeof(out));
	if (bpf_skb_change_tail(ctx, ETH_HLEN + sizeof(struct ipv6_header) + sizeof(out), 0) ||
	    write_headers(ctx, pkt, IPPROTO_ICMPV6, sizeof(out)))
		return -1;
	return bpf_skb_store_bytes(ctx, ETH_HLEN + sizeof(struct ipv6_header), &out, sizeof(out), 0);
}

/* reject answers the packet. What must not be answered (errors, resets,
 * fragments; RFC 1122, 3.2.2) is dropped. */
PHASE int reject(struct __sk_buff *ctx, const struct pkt *pkt)
{
	bool tcp;
	int err;

	if (!pkt)
		return TC_ACT_SHOT;
	tcp = pkt->tuple.protocol == IPPROTO_TCP;
	if (pkt->is_error || !pkt->has_l4 || pkt->is_fragment || pkt->has_options ||
	    !protocol_has_ports(pkt->tuple.protocol) || (tcp && (pkt->tcp_flags & TCP_RST)))
		return drop(DROP_NO_BACKEND);
	if (!may_reject())
		return drop(DROP_REJECT_LIMIT);
	if (tcp)
		err = make_reset(ctx, pkt);
	else if (pkt->is_ipv4)
		err = make_unreachable4(ctx, pkt);
	else
		err = make_unreachable6(ctx, pkt);
	if (err)
		return drop(DROP_REWRITE_FAILED);
	count(COUNT_REJECTED);
	return bpf_redirect(ctx->ifindex, 0);
}
