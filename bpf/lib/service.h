/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Frontends and backends: what socket.c and the tc programs share. */
#pragma once

#include "addr.h"
#include "drop.h"

struct search {
	struct backend want;
	__u32 list;
	__u32 found;
};

static long search_slot(__u32 slot, void *data)
{
	struct search *search = data;
	struct backend_key key = { .list = search->list, .slot = slot };
	struct backend *have = bpf_map_lookup_elem(&backends, &key);

	if (!have || !same_addr(&have->addr, &search->want.addr) || have->port != search->want.port)
		return 0;
	search->found = 1;
	return 1; /* stop */
}

PHASE int list_contains(__u32 list, __u32 n, const struct backend *backend)
{
	struct search search = { .list = list };

	if (!backend)
		return 0;
	search.want = *backend;
	bpf_loop(n, search_slot, &search, 0);
	return search.found;
}

/* A request for a backend, in one struct to save registers and stack. */
struct choice {
	struct service_key key;
	union addr client;   /* whose affinity counts */
	struct backend backend;
	__u32 list;
	__u32 n;
	__u32 random;
	__u32 affinity_seconds;
};

static __always_inline bool affine_backend(struct choice *c)
{
	struct affinity_key key = { .frontend = c->key, .client = c->client };
	struct affinity *known = bpf_map_lookup_elem(&affinities, &key);
	__u32 now = bpf_ktime_get_boot_ns() / 1000000000ull;

	if (!known || now - known->seen > c->affinity_seconds)
		return false;
	c->backend.addr = known->addr;
	c->backend.port = known->port;
	if (!list_contains(c->list, c->n, &c->backend))
		return false;
	known->seen = now;
	return true;
}

static __always_inline void remember_affinity(const struct choice *c)
{
	struct affinity_key key = { .frontend = c->key, .client = c->client };
	struct affinity value = {
		.addr = c->backend.addr, .port = c->backend.port,
		.seen = bpf_ktime_get_boot_ns() / 1000000000ull,
	};

	bpf_map_update_elem(&affinities, &key, &value, BPF_ANY);
}

/* choose_backend fills c->backend from the list, which is not empty. It
 * fails (0) only when the list has just been replaced: look the service up
 * again. */
PHASE int choose_backend(struct choice *c)
{
	struct backend_key key = {};
	struct backend *backend;

	if (!c)
		return 0;
	if (c->affinity_seconds && affine_backend(c))
		return 1;
	if (!c->n)
		return 0;
	key.list = c->list;
	key.slot = c->random % c->n;
	backend = bpf_map_lookup_elem(&backends, &key);
	if (!backend)
		return 0;
	c->backend = *backend;
	if (c->affinity_seconds)
		remember_affinity(c);
	return 1;
}
