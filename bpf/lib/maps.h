/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Every map. All are pinned by the agent; programs find them by name.
 * "Agent" as writer means dataplane.Apply. */
#pragma once

#include "types.h"

/* Frontends: address, port, protocol → backend lists. Written by the agent,
 * read by every path. Full: Apply fails for the frontends that do not fit. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

/* Backend lists: list, slot → address and port. A list is written whole
 * before a frontend names it, and never changes. Full: as services. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct backend_key);
	__type(value, struct backend);
} backends SEC(".maps");

/* Client prefixes of services that have source ranges: presence allows. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct source_range_key);
	__type(value, __u32);
} source_ranges SEC(".maps");

/* Local pods by address. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, union addr);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* What address ranges are: pods, services, nodes. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct network_key);
	__type(value, struct network);
} networks SEC(".maps");

/* This node's own addressing, entry 0. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

/* Connection tracking. Written by the tc programs, expired by the agent
 * (dataplane/conntrack). Full: the least recently used entry goes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Backend each client of a service with affinity last got. Full: as flows. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* Sockets that were given a backend: what they asked for. Written by the
 * cgroup programs. Full: getpeername shows the backend instead. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct socket_key);
	__type(value, struct socket_peer);
} sockets SEC(".maps");

/* Ports of datagrams of which a first fragment passed. Full: as flows. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Packets per enum counter, per CPU. Read by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Answers sent in the current second, per CPU (lib/reject.h). */
struct reject_budget {
	__u32 second;
	__u32 sent;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reject_budget);
} reject_budgets SEC(".maps");
