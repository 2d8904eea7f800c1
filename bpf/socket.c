// SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
/* Load balancing at the socket, for the processes of a cgroup: the backend is
 * chosen once, when a socket connects, and its packets need no translation.
 *
 *   connect4/6      TCP of pods and of the node's own processes; connected
 *                   UDP of the node's own namespace
 *   sendmsg4/6      unconnected UDP of the node's own namespace
 *   recvmsg4/6      its answers: they come from the frontend again
 *   getpeername4/6  shows the frontend that was asked for
 *
 * UDP of pods is translated per packet (pod.c), because a datagram's backend
 * may change while the socket lives.
 *
 * Reads services, backends, networks; reads and writes affinities, sockets. */
#include "lib/service.h"

char _license[] SEC("license") = "GPL";

/* Cookie of the node's own network namespace. */
const volatile __u64 node_netns;

enum { DENY = 0, ALLOW = 1 };

static __always_inline bool in_node_netns(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == node_netns;
}

/* service_protocol is the protocol this socket's frontends have, or 0. */
static __always_inline __u8 service_protocol(struct bpf_sock_addr *ctx)
{
	if (ctx->type == SOCK_STREAM &&
	    (ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_MPTCP))
		return IPPROTO_TCP;
	if (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP && in_node_netns(ctx))
		return IPPROTO_UDP;
	return 0;
}

static __always_inline int refuse(void)
{
	count(COUNT_REJECTED);
	bpf_set_retval(-ECONNREFUSED);
	return DENY;
}

/* give_up is what a client sees whose packets are dropped, without the wait. */
static __always_inline int give_up(void)
{
	count(DROP_NO_BACKEND);
	bpf_set_retval(-ETIMEDOUT);
	return DENY;
}

/* remember lets getpeername and recvmsg find the frontend again. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct choice *c)
{
	struct socket_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.addr = c->backend.addr, .port = c->backend.port,
	};
	struct socket_peer peer = { .addr = c->key.addr, .port = c->key.port };

	bpf_map_update_elem(&sockets, &key, &peer, BPF_ANY);
}

/* resolve finds the backend for the frontend in c->key: NEXT if it is in
 * c->backend, else the verdict. Unconnected datagrams of one socket keep to
 * one backend while the list does not change. */
static __always_inline int resolve(struct bpf_sock_addr *ctx, struct choice *c, bool connects)
{
	struct service *service;
	struct network *network;

	c->client.d[0] = 0;
	c->client.d[1] = bpf_get_netns_cookie(ctx);
	for (int i = 0; i < 3; i++) {
		service = bpf_map_lookup_elem(&services, &c->key);
		if (!service) {
			network = network_of(&c->key.addr);
			return network && network->kind == NETWORK_SERVICE ? refuse() : ALLOW;
		}
		c->list = service->internal_list;
		c->n = service->internal_count;
		c->affinity_seconds = service->affinity_seconds;
		c->random = connects ? bpf_get_prandom_u32() :
				       (__u32)bpf_get_socket_cookie(ctx) * 2654435761u >> 8;
		if (!c->n)
			return service->flags & SERVICE_DROP_INTERNAL ? give_up() : refuse();
		if (choose_backend(c))
			return NEXT;
	}
	return refuse();
}

/* balance4 sends the socket, or one datagram of it, to a backend. */
static __always_inline int balance4(struct bpf_sock_addr *ctx, bool connects)
{
	struct choice c = {};
	int verdict;

	c.key.protocol = service_protocol(ctx);
	if (!c.key.protocol)
		return ALLOW;
	map_ipv4(&c.key.addr, ctx->user_ip4);
	c.key.port = ctx->user_port;
	verdict = resolve(ctx, &c, connects);
	if (verdict != NEXT)
		return verdict;
	if (!is_ipv4(&c.backend.addr))
		return refuse();
	remember(ctx, &c);
	ctx->user_ip4 = c.backend.addr.w[3];
	ctx->user_port = c.backend.port;
	return ALLOW;
}

/* An IPv6 socket may name an IPv4 frontend by its mapped address, which is
 * how frontends are written here anyway. */
static __always_inline int balance6(struct bpf_sock_addr *ctx, bool connects)
{
	struct choice c = {};
	int verdict;

	c.key.protocol = service_protocol(ctx);
	if (!c.key.protocol)
		return ALLOW;
	c.key.addr.w[0] = ctx->user_ip6[0];
	c.key.addr.w[1] = ctx->user_ip6[1];
	c.key.addr.w[2] = ctx->user_ip6[2];
	c.key.addr.w[3] = ctx->user_ip6[3];
	c.key.port = ctx->user_port;
	verdict = resolve(ctx, &c, connects);
	if (verdict != NEXT)
		return verdict;
	remember(ctx, &c);
	ctx->user_ip6[0] = c.backend.addr.w[0];
	ctx->user_ip6[1] = c.backend.addr.w[1];
	ctx->user_ip6[2] = c.backend.addr.w[2];
	ctx->user_ip6[3] = c.backend.addr.w[3];
	ctx->user_port = c.backend.port;
	return ALLOW;
}

/* frontend_of finds what a socket asked for when its peer is a backend. */
static __always_inline struct socket_peer *frontend_of(struct bpf_sock_addr *ctx,
						       struct socket_key *key)
{
	key->cookie = bpf_get_socket_cookie(ctx);
	key->port = ctx->user_port;
	return bpf_map_lookup_elem(&sockets, key);
}

static __always_inline int show_frontend4(struct bpf_sock_addr *ctx)
{
	struct socket_key key = {};
	struct socket_peer *peer;

	map_ipv4(&key.addr, ctx->user_ip4);
	peer = frontend_of(ctx, &key);
	if (peer) {
		ctx->user_ip4 = peer->addr.w[3];
		ctx->user_port = peer->port;
	}
	return ALLOW;
}

static __always_inline int show_frontend6(struct bpf_sock_addr *ctx)
{
	struct socket_key key = {};
	struct socket_peer *peer;

	key.addr.w[0] = ctx->user_ip6[0];
	key.addr.w[1] = ctx->user_ip6[1];
	key.addr.w[2] = ctx->user_ip6[2];
	key.addr.w[3] = ctx->user_ip6[3];
	peer = frontend_of(ctx, &key);
	if (peer) {
		ctx->user_ip6[0] = peer->addr.w[0];
		ctx->user_ip6[1] = peer->addr.w[1];
		ctx->user_ip6[2] = peer->addr.w[2];
		ctx->user_ip6[3] = peer->addr.w[3];
		ctx->user_port = peer->port;
	}
	return ALLOW;
}

SEC("cgroup/connect4")
int socket_connect4(struct bpf_sock_addr *ctx)
{
	return balance4(ctx, true);
}

SEC("cgroup/connect6")
int socket_connect6(struct bpf_sock_addr *ctx)
{
	return balance6(ctx, true);
}

SEC("cgroup/sendmsg4")
int socket_sendmsg4(struct bpf_sock_addr *ctx)
{
	return balance4(ctx, false);
}

SEC("cgroup/sendmsg6")
int socket_sendmsg6(struct bpf_sock_addr *ctx)
{
	return balance6(ctx, false);
}

SEC("cgroup/recvmsg4")
int socket_recvmsg4(struct bpf_sock_addr *ctx)
{
	return show_frontend4(ctx);
}

SEC("cgroup/recvmsg6")
int socket_recvmsg6(struct bpf_sock_addr *ctx)
{
	return show_frontend6(ctx);
}

SEC("cgroup/getpeername4")
int socket_getpeername4(struct bpf_sock_addr *ctx)
{
	return show_frontend4(ctx);
}

SEC("cgroup/getpeername6")
int socket_getpeername6(struct bpf_sock_addr *ctx)
{
	return show_frontend6(ctx);
}
