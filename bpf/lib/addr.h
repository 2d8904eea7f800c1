/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Addresses, and the network each belongs to. */
#pragma once

#include "maps.h"

static __always_inline void map_ipv4(union addr *to, __be32 from)
{
	to->d[0] = 0;
	to->w[2] = bpf_htonl(0xffff);
	to->w[3] = from;
}

static __always_inline bool is_ipv4(const union addr *a)
{
	return a->d[0] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_addr(const union addr *a, const union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

static __always_inline struct network *network_of(const union addr *a)
{
	struct network_key key = { .prefixlen = 128 };

	__builtin_memcpy(key.addr, a->b, sizeof(key.addr));
	return bpf_map_lookup_elem(&networks, &key);
}
