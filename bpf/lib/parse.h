/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Phase 1: a packet is read once into struct pkt. Headers are copied with
 * bpf_skb_load_bytes, so it does not matter whether they are in the linear
 * part of the skb. */
#pragma once

#include "addr.h"
#include "drop.h"

struct pkt {
	/* Addresses and ports, of an ICMP error: those of the packet it is
	 * about, reversed, so that it is looked up like an answer. */
	struct flow_key tuple;
	union addr error_src; /* who sent the ICMP error */
	__u16 l4_off;
	__u16 inner_off; /* IP header inside an ICMP error */
	__u8 is_ipv4;
	__u8 is_error;      /* ICMP error with a packet inside */
	__u8 has_ports;     /* tuple has ports (or an ICMP identifier) */
	__u8 has_l4;        /* the L4 header is in this packet */
	__u8 is_fragment;
	__u8 tcp_flags;
	__u8 ip_protocol;   /* of the packet itself, never of the inner one */
	__u8 has_options;   /* IPv4 options or IPv6 extension headers */
	__u8 is_known;      /* belongs to a flow, and was translated as it says */
	__u8 leaves_pod;    /* seen by pod_egress */
};

enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_ACK = 0x10 };

struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment; /* flags and offset */
	__u8 ttl;
	__u8 protocol;
	__sum16 checksum;
	__be32 src;
	__be32 dst;
};
_Static_assert(sizeof(struct ipv4_header) == 20, "RFC 791");

struct ipv6_header {
	__be32 version_class_label;
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	union addr src;
	union addr dst;
};
_Static_assert(sizeof(struct ipv6_header) == 40, "RFC 8200");

struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};
_Static_assert(sizeof(struct icmp_header) == 8, "RFC 792");

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000

/* is_icmp_error: RFC 792 types 3, 11, 12; RFC 4443 types 1 to 4. */
static __always_inline bool is_icmp_error(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == 3 || type == 11 || type == 12;
	return protocol == IPPROTO_ICMPV6 && type >= 1 && type <= 4;
}

/* is_echo tells requests (sport) from replies (dport): 1, 2, or 0. */
static __always_inline int echo_kind(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == 8 ? 1 : type == 0 ? 2 : 0;
	if (protocol == IPPROTO_ICMPV6)
		return type == 128 ? 1 : type == 129 ? 2 : 0;
	return 0;
}

static __always_inline bool protocol_has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ||
	       protocol == IPPROTO_SCTP;
}

/* parse_ipv4 fills the addresses and leaves the L4 header's offset. */
static __always_inline int parse_ipv4(struct __sk_buff *ctx, __u32 off, struct pkt *pkt,
				      struct flow_key *tuple, struct fragment_key *frag,
				      bool *later_fragment)
{
	struct ipv4_header ip;
	__u16 fragment;

	if (bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)))
		return drop(DROP_MALFORMED);
	if (ip.version_ihl >> 4 != 4 || (ip.version_ihl & 0xf) < 5)
		return drop(DROP_MALFORMED);
	map_ipv4(&tuple->src, ip.src);
	map_ipv4(&tuple->dst, ip.dst);
	tuple->protocol = ip.protocol;
	pkt->has_options = (ip.version_ihl & 0xf) != 5;
	pkt->l4_off = off + (ip.version_ihl & 0xf) * 4;
	fragment = bpf_ntohs(ip.fragment);
	pkt->is_fragment = (fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS)) != 0;
	*later_fragment = (fragment & IPV4_FRAGMENT_OFFSET) != 0;
	frag->id = ip.id;
	return NEXT;
}

/* parse_ipv6 walks up to four extension headers (RFC 8200, section 4.1). */
static __always_inline int parse_ipv6(struct __sk_buff *ctx, __u32 off, struct pkt *pkt,
				      struct flow_key *tuple, struct fragment_key *frag,
				      bool *later_fragment)
{
	struct ipv6_header ip;
	__u8 next;

	if (bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)))
		return drop(DROP_MALFORMED);
	tuple->src = ip.src;
	tuple->dst = ip.dst;
	next = ip.next_header;
	off += sizeof(ip);
	for (int i = 0; i < 4; i++) {
		struct {
			__u8 next;
			__u8 length;
			__be16 fragment;
			__be32 id;
		} ext;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if (bpf_skb_load_bytes(ctx, off, &ext, sizeof(ext)))
			return drop(DROP_MALFORMED);
		pkt->has_options = 1;
		if (next == IPPROTO_FRAGMENT) {
			pkt->is_fragment = 1;
			*later_fragment = (bpf_ntohs(ext.fragment) & 0xfff8) != 0;
			frag->id = ext.id;
			off += 8;
		} else {
			off += (ext.length + 1) * 8;
		}
		next = ext.next;
	}
	tuple->protocol = next;
	pkt->l4_off = off;
	return NEXT;
}

/* parse_inner replaces the tuple of an ICMP error by the reversed tuple of
 * the packet it quotes. The quote must have been sent by whom the error is
 * sent to; otherwise it is left an ordinary packet. */
static __always_inline void parse_inner(struct __sk_buff *ctx, struct pkt *pkt)
{
	__u32 off = pkt->l4_off + sizeof(struct icmp_header);
	struct flow_key inner = {};
	__be16 ports[4] = {};
	__u32 l4;

	if (pkt->is_ipv4) {
		struct ipv4_header ip;

		if (bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)))
			return;
		if (ip.fragment & bpf_htons(IPV4_FRAGMENT_OFFSET))
			return;
		map_ipv4(&inner.dst, ip.src);
		map_ipv4(&inner.src, ip.dst);
		inner.protocol = ip.protocol;
		l4 = off + (ip.version_ihl & 0xf) * 4;
	} else {
		struct ipv6_header ip;

		if (bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)))
			return;
		inner.dst = ip.src;
		inner.src = ip.dst;
		inner.protocol = ip.next_header;
		l4 = off + sizeof(ip);
	}
	if (!same_addr(&inner.dst, &pkt->tuple.dst))
		return;
	if (bpf_skb_load_bytes(ctx, l4, ports, sizeof(ports)))
		return;
	if (protocol_has_ports(inner.protocol)) {
		inner.dport = ports[0];
		inner.sport = ports[1];
	} else {
		int echo = echo_kind(inner.protocol, ((__u8 *)ports)[0]);

		if (!echo)
			return;
		if (echo == 1)
			inner.dport = ports[2];
		else
			inner.sport = ports[2];
	}
	pkt->error_src = pkt->tuple.src;
	pkt->tuple = inner;
	pkt->inner_off = off;
	pkt->is_error = 1;
	pkt->has_ports = 1;
}

/* parse_fragment gives later fragments the ports of the first one. */
static __always_inline int parse_fragment(struct pkt *pkt, struct fragment_key *frag,
					  bool later_fragment)
{
	struct fragment ports = {};

	frag->src = pkt->tuple.src;
	frag->dst = pkt->tuple.dst;
	frag->protocol = pkt->tuple.protocol;
	if (!later_fragment) {
		if (!pkt->has_ports)
			return NEXT;
		ports.sport = pkt->tuple.sport;
		ports.dport = pkt->tuple.dport;
		if (bpf_map_update_elem(&fragments, frag, &ports, BPF_ANY))
			return drop(DROP_TABLE_FULL);
		return NEXT;
	}
	struct fragment *known = bpf_map_lookup_elem(&fragments, frag);

	if (known) {
		pkt->tuple.sport = known->sport;
		pkt->tuple.dport = known->dport;
		pkt->has_ports = 1;
	}
	return NEXT;
}

/* parse_l4 reads ports, TCP flags and ICMP identifiers. */
static __always_inline int parse_l4(struct __sk_buff *ctx, struct pkt *pkt)
{
	struct {
		__be16 sport, dport;
		__be32 sequence, ack;
		__u8 offset, flags;
	} tcp = {};
	struct icmp_header icmp;

	pkt->has_l4 = 1;
	switch (pkt->tuple.protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(ctx, pkt->l4_off, &tcp, 14))
			return drop(DROP_MALFORMED);
		pkt->tcp_flags = tcp.flags;
		break;
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (bpf_skb_load_bytes(ctx, pkt->l4_off, &tcp, 4))
			return drop(DROP_MALFORMED);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (bpf_skb_load_bytes(ctx, pkt->l4_off, &icmp, sizeof(icmp)))
			return drop(DROP_MALFORMED);
		switch (echo_kind(pkt->tuple.protocol, icmp.type)) {
		case 1:
			pkt->tuple.sport = icmp.id;
			pkt->has_ports = 1;
			break;
		case 2:
			pkt->tuple.dport = icmp.id;
			pkt->has_ports = 1;
			break;
		default:
			if (is_icmp_error(pkt->tuple.protocol, icmp.type))
				parse_inner(ctx, pkt);
		}
		return NEXT;
	default:
		return NEXT;
	}
	pkt->tuple.sport = tcp.sport;
	pkt->tuple.dport = tcp.dport;
	pkt->has_ports = 1;
	return NEXT;
}

/* parse reads the packet. Whatever is not IP goes on to the host's stack:
 * the verdict is then TC_ACT_UNSPEC. */
PHASE int parse(struct __sk_buff *ctx, struct pkt *pkt)
{
	struct fragment_key frag = {};
	bool later_fragment = false;
	int verdict;

	if (!pkt)
		return TC_ACT_SHOT;
	if (ctx->protocol == bpf_htons(ETH_P_IP)) {
		pkt->is_ipv4 = 1;
		verdict = parse_ipv4(ctx, ETH_HLEN, pkt, &pkt->tuple, &frag, &later_fragment);
	} else if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		verdict = parse_ipv6(ctx, ETH_HLEN, pkt, &pkt->tuple, &frag, &later_fragment);
	} else {
		return TC_ACT_UNSPEC;
	}
	if (verdict != NEXT)
		return verdict;
	pkt->ip_protocol = pkt->tuple.protocol;
	if (!later_fragment) {
		verdict = parse_l4(ctx, pkt);
		if (verdict != NEXT)
			return verdict;
	}
	if (pkt->is_fragment)
		return parse_fragment(pkt, &frag, later_fragment);
	return NEXT;
}
