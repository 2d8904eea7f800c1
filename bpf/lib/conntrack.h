/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Phase 2: flows. A packet whose tuple is known becomes what its flow says;
 * both directions have an entry of their own, so an answer is translated
 * back wherever it passes. An entry that names a backend is checked against
 * the service's list before it is used: a stale backend is impossible for
 * datagrams and for new TCP connections (established ones stay, as
 * Kubernetes' graceful termination wants it). */
#pragma once

#include "nat.h"
#include "service.h"

/* Source ports (and ICMP identifiers) of translated flows. Sockets of the
 * node do not get them by themselves: net.ipv4.ip_local_port_range begins at
 * 32768, and NodePorts are 30000 to 32767. */
enum { NAT_PORT_MIN = 10000, NAT_PORTS = 20000, NAT_PORT_ATTEMPTS = 24 };

static __always_inline __u32 now_seconds(void)
{
	return bpf_ktime_get_boot_ns() / 1000000000ull;
}

/* opposite makes the key and the translation of the other direction. */
static __always_inline void opposite(const struct flow_key *key, const struct flow *flow,
				     struct flow_key *other_key, struct flow *other)
{
	other_key->src = flow->dst;
	other_key->dst = flow->src;
	other_key->sport = flow->dport;
	other_key->dport = flow->sport;
	other_key->protocol = key->protocol;
	other->src = key->dst;
	other->dst = key->src;
	other->sport = key->dport;
	other->dport = key->sport;
	other->list = 0;
	other->seen = 0;
	other->flags = (flow->flags & FLOW_REPLY) ^ FLOW_REPLY;
}

/* forget deletes both directions of a flow. */
static __always_inline void forget(const struct flow_key *key, const struct flow *flow)
{
	struct flow_key other_key = {};
	struct flow other;

	opposite(key, flow, &other_key, &other);
	bpf_map_delete_elem(&flows, &other_key);
	bpf_map_delete_elem(&flows, key);
}

/* is_closed: a FIN or RST passed in either direction. */
PHASE int is_closed(const struct flow_key *key, const struct flow *flow)
{
	struct flow_key other_key = {};
	struct flow unused, *other;

	if (!key || !flow)
		return 0;
	if (flow->flags & (FLOW_FIN | FLOW_RST))
		return 1;
	opposite(key, flow, &other_key, &unused);
	other = bpf_map_lookup_elem(&flows, &other_key);
	return other && (other->flags & (FLOW_FIN | FLOW_RST));
}

/* backend_is_listed checks a flow's backend against the list its service has
 * now, if that is another one than when it was last checked. */
PHASE int backend_is_listed(const struct flow_key *key, struct flow *flow)
{
	struct service_key service_key = {};
	struct backend backend = {};
	struct service *service;
	__u32 list, n;
	bool external;

	if (!key || !flow)
		return 0;
	service_key.addr = key->dst;
	service_key.port = key->dport;
	service_key.protocol = key->protocol;
	service = bpf_map_lookup_elem(&services, &service_key);
	if (!service)
		return 0;
	backend.addr = flow->dst;
	backend.port = flow->dport;
	external = flow->flags & FLOW_EXTERNAL;
	list = external ? service->external_list : service->internal_list;
	n = external ? service->external_count : service->internal_count;
	if (list == flow->list)
		return 1;
	if (!list_contains(list, n, &backend))
		return 0;
	flow->list = list;
	return 1;
}

/* is_usable: may this packet still follow the flow? */
static __always_inline bool is_usable(const struct pkt *pkt, struct flow *flow)
{
	bool opens = pkt->tuple.protocol == IPPROTO_TCP &&
		     (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (flow->flags & FLOW_REPLY)
		return true;
	if (opens && is_closed(&pkt->tuple, flow))
		return false;
	if (!(flow->flags & (FLOW_INTERNAL | FLOW_EXTERNAL)))
		return true;
	if (pkt->tuple.protocol == IPPROTO_TCP && !opens)
		return true;
	return backend_is_listed(&pkt->tuple, flow);
}

/* touch notes that a packet passed. Once a second it also makes sure that the
 * other direction has not been evicted. */
static __always_inline void touch(const struct pkt *pkt, struct flow *flow)
{
	__u32 now = now_seconds();

	if (pkt->tcp_flags & TCP_FIN)
		flow->flags |= FLOW_FIN;
	if (pkt->tcp_flags & TCP_RST)
		flow->flags |= FLOW_RST;
	if (flow->seen == now)
		return;
	flow->seen = now;

	struct flow_key other_key = {};
	struct flow other;

	if (flow->flags & FLOW_REPLY)
		return;
	opposite(&pkt->tuple, flow, &other_key, &other);
	if (!bpf_map_lookup_elem(&flows, &other_key))
		bpf_map_update_elem(&flows, &other_key, &other, BPF_NOEXIST);
}

/* translate is the phase: it rewrites packets of known flows. */
PHASE int translate(struct __sk_buff *ctx, struct pkt *pkt)
{
	struct flow *flow, to;

	if (!pkt)
		return TC_ACT_SHOT;
	if (!pkt->has_ports)
		return NEXT;
	flow = bpf_map_lookup_elem(&flows, &pkt->tuple);
	if (!flow || ((flow->flags & FLOW_APART) && !pkt->leaves_pod))
		return NEXT;
	if (!pkt->is_error) {
		if (!is_usable(pkt, flow)) {
			forget(&pkt->tuple, flow);
			return NEXT;
		}
		touch(pkt, flow);
	}
	to = *flow;
	return rewrite(ctx, pkt, &to);
}

enum port_choice {
	PORT_KEEP,    /* or fail, if another flow has it */
	PORT_PREFER,  /* the packet's own, if no other flow has it */
	PORT_CHOOSE,  /* one of ours: the address is the node's, too */
};

static __always_inline __be16 random_port(void)
{
	return bpf_htons(NAT_PORT_MIN + bpf_get_prandom_u32() % NAT_PORTS);
}

/* bind_flow makes both entries of a new flow from the packet's tuple to what *to
 * says, and chooses its source port so that answers are told apart. It returns
 * NEXT, or the enum counter to drop the packet for: some callers need not. */
PHASE int bind_flow(const struct flow_key *key, struct flow *to, enum port_choice choice)
{
	struct flow_key other_key = {};
	struct flow other, *known;
	long err = -1;

	if (!key || !to)
		return DROP_TABLE_FULL;
	if (key->protocol == IPPROTO_SCTP)
		choice = PORT_KEEP; /* see write_ports */
	if (choice == PORT_CHOOSE && key->sport)
		to->sport = random_port();
	to->seen = now_seconds();
	for (int i = 0; i < NAT_PORT_ATTEMPTS; i++) {
		opposite(key, to, &other_key, &other);
		err = bpf_map_update_elem(&flows, &other_key, &other, BPF_NOEXIST);
		if (!err)
			break;
		known = bpf_map_lookup_elem(&flows, &other_key);
		if (known && same_addr(&known->src, &other.src) && same_addr(&known->dst, &other.dst) &&
		    known->sport == other.sport && known->dport == other.dport) {
			known->flags = other.flags;
			err = 0;
			break;
		}
		if (err != -EEXIST)
			return DROP_TABLE_FULL;
		if (choice == PORT_KEEP || !key->sport)
			break;
		to->sport = random_port();
	}
	if (err)
		return DROP_PORTS_EXHAUSTED;
	if (bpf_map_update_elem(&flows, key, to, BPF_ANY))
		return DROP_TABLE_FULL;
	return NEXT;
}
