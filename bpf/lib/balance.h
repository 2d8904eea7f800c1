/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Phase 3: a packet to a frontend is given a backend, and its flow the
 * entries that later packets follow. */
#pragma once

#include "conntrack.h"
#include "forward.h"
#include "reject.h"

/* Where a packet comes from decides which of a service's lists counts. */
enum origin { FROM_NODE, FROM_OUTSIDE };

/* 169.254.1.1 and fe80::1, the gateway of every pod: a pod that reaches
 * itself through a service sees this as the client. */
static __always_inline void hairpin_addr(bool ipv4, union addr *a)
{
	if (ipv4) {
		map_ipv4(a, bpf_htonl(0xa9fe0101));
		return;
	}
	a->w[0] = bpf_htonl(0xfe800000);
	a->w[1] = 0;
	a->w[2] = 0;
	a->w[3] = bpf_htonl(1);
}

static __always_inline bool in_source_ranges(__u32 set, const union addr *client)
{
	struct source_range_key key = { .prefixlen = 32 + 128, .set = bpf_htonl(set) };

	__builtin_memcpy(key.addr, client->b, sizeof(key.addr));
	return bpf_map_lookup_elem(&source_ranges, &key) != NULL;
}

/* choose_source decides what the backend sees as client. */
static __always_inline int choose_source(const struct pkt *pkt, const struct node *node,
					 enum origin origin, __u32 service_flags,
					 struct flow *to, enum port_choice *port)
{
	*port = PORT_PREFER;
	if (origin == FROM_NODE) {
		if (same_addr(&pkt->tuple.src, &to->dst))
			hairpin_addr(pkt->is_ipv4, &to->src);
		return NEXT;
	}
	/* A client elsewhere that is the backend itself sees the node, as others
	 * do: the gateway's address means nothing beyond this node. */
	if ((service_flags & SERVICE_KEEP_SOURCE) || is_node_addr(node, &to->dst))
		return NEXT;
	to->src = pkt->is_ipv4 ? node->addr4 : node->addr6;
	if (!to->src.d[0] && !to->src.d[1])
		return drop(DROP_UNSUPPORTED_PROTOCOL);
	*port = PORT_CHOOSE;
	return NEXT;
}

PHASE int balance(struct __sk_buff *ctx, struct pkt *pkt, const struct node *node,
		  enum origin origin)
{
	struct choice c = {};
	struct service *service;
	enum port_choice port;
	struct flow to = {};
	__u32 flags = 0;
	int chosen = 0;
	int verdict;

	if (!pkt || !node)
		return TC_ACT_SHOT;
	c.key.addr = pkt->tuple.dst;
	c.key.port = pkt->tuple.dport;
	c.key.protocol = pkt->tuple.protocol;
	c.client = pkt->tuple.src;
	for (int i = 0; i < 3 && !chosen; i++) {
		service = bpf_map_lookup_elem(&services, &c.key);
		if (!service)
			return NEXT;
		flags = service->flags;
		if (origin == FROM_OUTSIDE && service->source_set &&
		    !in_source_ranges(service->source_set, &c.client))
			return drop(DROP_SOURCE_RANGE);
		c.list = origin == FROM_OUTSIDE ? service->external_list : service->internal_list;
		c.n = origin == FROM_OUTSIDE ? service->external_count : service->internal_count;
		c.affinity_seconds = service->affinity_seconds;
		c.random = bpf_get_prandom_u32();
		if (!c.n)
			break;
		chosen = choose_backend(&c);
	}
	if (!chosen) {
		if (flags & (origin == FROM_OUTSIDE ? SERVICE_DROP_EXTERNAL : SERVICE_DROP_INTERNAL))
			return drop(DROP_NO_BACKEND);
		return NO_BACKEND;
	}
	to.src = pkt->tuple.src;
	to.dst = c.backend.addr;
	to.sport = pkt->tuple.sport;
	to.dport = c.backend.port;
	to.list = c.list;
	to.flags = origin == FROM_OUTSIDE ? FLOW_EXTERNAL : FLOW_INTERNAL;
	verdict = choose_source(pkt, node, origin, flags, &to, &port);
	if (verdict != NEXT)
		return verdict;
	verdict = bind_flow(&pkt->tuple, &to, port);
	if (verdict != NEXT)
		return drop(verdict);
	return rewrite(ctx, pkt, &to);
}

/* load_balance is the phase. */
static __always_inline int load_balance(struct __sk_buff *ctx, struct pkt *pkt,
					const struct node *node, enum origin origin)
{
	if (pkt->is_known || pkt->is_error || !protocol_has_ports(pkt->tuple.protocol))
		return NEXT;
	if (!pkt->has_ports)
		return NEXT; /* a later fragment; forward decides */

	int verdict = balance(ctx, pkt, node, origin);

	return verdict == NO_BACKEND ? reject(ctx, pkt) : verdict;
}

/* steer gives a packet the addresses it is to go on with: those of its flow
 * or, if it opens one to a frontend, those of a backend. */
static __always_inline int steer(struct __sk_buff *ctx, struct pkt *pkt, const struct node *node,
				 enum origin origin)
{
	int verdict = translate(ctx, pkt);

	return verdict == NEXT ? load_balance(ctx, pkt, node, origin) : verdict;
}
