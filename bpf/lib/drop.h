/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Counting, and the one way to drop a packet. */
#pragma once

#include "maps.h"

static __always_inline void count(enum counter which)
{
	__u32 key = which;
	__u64 *n = bpf_map_lookup_elem(&counters, &key);

	if (n)
		(*n)++; /* per CPU */
}

/* drop counts the packet under reason and returns the verdict to drop it. */
static __always_inline int drop(enum counter reason)
{
	count(reason);
	return TC_ACT_SHOT;
}
