/* SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0 */
/* Every struct that is shared between programs, or between C and Go. Go's
 * twins are generated from these (dataplane/bpfobj). Padding is explicit and
 * always zero: keys are compared byte by byte. */
#pragma once

#include "kernel.h"

/* An address of either family; IPv4 is IPv4-mapped (RFC 4291, 2.5.5.2), so
 * that every table has one layout. */
union addr {
	__u8 b[16];
	__be32 w[4];
	__u64 d[2];
};
_Static_assert(sizeof(union addr) == 16, "layout");

/* Backends per list that a lookup can reach; dataplane/service refuses more. */
#define MAX_BACKENDS 4096

struct service_key {
	union addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad[5];
};
_Static_assert(sizeof(struct service_key) == 24, "layout");

enum service_flags {
	SERVICE_DROP_EXTERNAL = 1 << 0, /* no backend for outside clients: drop */
	SERVICE_KEEP_SOURCE = 1 << 1,   /* outside clients keep their address */
	SERVICE_DROP_INTERNAL = 1 << 2, /* no backend for clients on this node: drop */
};

/* One frontend. A list is identified by a number that is never given to a
 * list with other contents, so list numbers serve as generations too. */
struct service {
	__u32 internal_list;
	__u32 internal_count;
	__u32 external_list;
	__u32 external_count;
	__u32 affinity_seconds; /* 0: none */
	__u32 source_set;       /* in source_ranges; 0: every client */
	__u32 flags;            /* enum service_flags */
	__u32 pad;
};
_Static_assert(sizeof(struct service) == 32, "layout");

struct backend_key {
	__u32 list;
	__u32 slot; /* 0 .. count-1 */
};

struct backend {
	union addr addr;
	__be16 port;
	__u8 pad[6];
};
_Static_assert(sizeof(struct backend) == 24, "layout");

/* Keys of LPM tries: prefixlen counts bits of all that follows it. */
struct source_range_key {
	__u32 prefixlen;
	__be32 set;
	__u8 addr[16];
};

struct network_key {
	__u32 prefixlen;
	__u8 addr[16];
};

enum network_kind {
	NETWORK_CLUSTER = 1,   /* pods of the cluster, node unknown */
	NETWORK_SERVICE = 2,   /* ClusterIPs */
	NETWORK_LOCAL_POD = 3, /* this node's pods */
	NETWORK_LOCAL_NODE = 4,/* this node's own addresses */
	NETWORK_PEER_POD = 5,  /* pods of the node `node` */
	NETWORK_PEER_NODE = 6, /* the node `node` itself */
};

/* What a range of addresses is. No entry: outside the cluster. */
struct network {
	union addr node;
	__u32 kind; /* enum network_kind */
	__u32 pad;
};
_Static_assert(sizeof(struct network) == 24, "layout");

/* A local pod. */
struct endpoint {
	__u32 ifindex; /* host side of the pod's veth pair */
	__u32 pad;
};

/* This node; the only entry of `node`. */
struct node {
	union addr addr4; /* zero: none */
	union addr addr6;
	__u32 uplink_ifindex;
	__u32 overlay_ifindex; /* 0: native routing */
};
_Static_assert(sizeof(struct node) == 40, "layout");

/* A packet's addresses and ports. For ICMP echo, the identifier is sport of a
 * request and dport of a reply, the other one is 0 (RFC 5508, section 3). */
struct flow_key {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow_key) == 40, "layout");

enum flow_flags {
	FLOW_REPLY = 1 << 0,    /* created as the opposite direction of a flow */
	FLOW_INTERNAL = 1 << 1, /* a service's Internal list chose dst */
	FLOW_EXTERNAL = 1 << 2, /* a service's External list chose dst */
	FLOW_FIN = 1 << 3,      /* TCP FIN seen in this direction */
	FLOW_RST = 1 << 4,      /* TCP RST seen in this direction */
	FLOW_APART = 1 << 5,    /* only pod_egress translates: beyond it, a packet
				   with this tuple is of the other flow (pod.c) */
};

/* What a packet with the key's tuple becomes. Every flow has two entries,
 * one per direction; each one's translation leads to the other's key
 * reversed. */
struct flow {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u32 seen; /* seconds since boot of the last packet, 0: none yet */
	__u32 list; /* backend list dst was last found in */
	__u32 flags;
};
_Static_assert(sizeof(struct flow) == 48, "layout");

struct affinity_key {
	struct service_key frontend;
	union addr client; /* address, or {0, netns cookie} for a local socket */
};
_Static_assert(sizeof(struct affinity_key) == 40, "layout");

struct affinity {
	union addr addr;
	__be16 port;
	__u16 pad;
	__u32 seen; /* seconds since boot */
};
_Static_assert(sizeof(struct affinity) == 24, "layout");

/* A socket whose peer is a backend, though it asked for a frontend. */
struct socket_key {
	__u64 cookie;
	union addr addr; /* backend */
	__be16 port;
	__u8 pad[6];
};
_Static_assert(sizeof(struct socket_key) == 32, "layout");

struct socket_peer {
	union addr addr; /* frontend */
	__be16 port;
	__u8 pad[6];
};

/* The datagram a fragment belongs to (RFC 791, section 3.2). */
struct fragment_key {
	union addr src;
	union addr dst;
	__be32 id;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct fragment_key) == 40, "layout");

struct fragment {
	__be16 sport;
	__be16 dport;
};

/* Why a packet was not delivered, or what was done for it: an index of
 * `counters`. Names are exported as they are here, without the prefix. */
enum counter {
	COUNT_FORWARDED,            /* sent on by us */
	COUNT_TRANSLATED,           /* an address or port was rewritten */
	COUNT_REJECTED,             /* answered with RST or ICMP unreachable */
	DROP_MALFORMED,             /* shorter than its headers say */
	DROP_UNSUPPORTED_PROTOCOL,  /* not IPv4, IPv6 or ARP, or cannot be translated */
	DROP_SPOOFED_SOURCE,        /* a pod used an address that is not its own */
	DROP_UNKNOWN_PEER,          /* a tunnel packet from no node of the cluster */
	DROP_UNKNOWN_POD,           /* a pod address that nobody has */
	DROP_NO_BACKEND,            /* service without backend, and not answered */
	DROP_SOURCE_RANGE,          /* client outside loadBalancerSourceRanges */
	DROP_FRAGMENT,              /* fragment whose first part was not seen */
	DROP_PORTS_EXHAUSTED,       /* no free source port for a translation */
	DROP_TABLE_FULL,            /* a map did not take an entry */
	DROP_REJECT_LIMIT,          /* too many answers in this second */
	DROP_REWRITE_FAILED,        /* the packet could not be changed */
	COUNTERS,
};

/* Phases are global functions: the verifier checks each once, for any
 * argument, and not again on every path that leads to it. It then wants to
 * see every pointer compared with NULL (kernel 6.6 has no arg:nonnull). */
#define PHASE __attribute__((noinline))

/* A verdict of a phase: a tcx return value, NEXT to go on, or NO_BACKEND for
 * a packet to be rejected. */
#define NEXT (-2)
#define NO_BACKEND (-3)
