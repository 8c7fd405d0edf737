/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Read and write the contexts of both families: one helper per quirk. user_port is 32 bits wide, with the port in
 * network byte order in the lower half. */
#ifndef CLB_CONTEXT_H
#define CLB_CONTEXT_H

#include "maps.h"

#define CLB_MAPPED bpf_htonl(0xffff)

static __always_inline void clb_read4(const struct bpf_sock_addr *ctx, struct clb_vip *vip)
{
	vip->address[0] = 0;
	vip->address[1] = 0;
	vip->address[2] = CLB_MAPPED;
	vip->address[3] = ctx->user_ip4;
	vip->port = (__be16)ctx->user_port;
	vip->protocol = (__u8)ctx->protocol;
	vip->zero = 0;
}

/* Dual-stack sockets have IPv4-mapped addresses, which are looked up and written back unchanged. */
static __always_inline void clb_read6(const struct bpf_sock_addr *ctx, struct clb_vip *vip)
{
	vip->address[0] = ctx->user_ip6[0];
	vip->address[1] = ctx->user_ip6[1];
	vip->address[2] = ctx->user_ip6[2];
	vip->address[3] = ctx->user_ip6[3];
	vip->port = (__be16)ctx->user_port;
	vip->protocol = (__u8)ctx->protocol;
	vip->zero = 0;
}

/* The peer of a connected socket. */
static __always_inline void clb_read_peer4(const struct bpf_sock *sk, struct clb_vip *peer)
{
	peer->address[0] = 0;
	peer->address[1] = 0;
	peer->address[2] = CLB_MAPPED;
	peer->address[3] = sk->dst_ip4;
	peer->port = (__be16)sk->dst_port;
}

static __always_inline void clb_read_peer6(const struct bpf_sock *sk, struct clb_vip *peer)
{
	peer->address[0] = sk->dst_ip6[0];
	peer->address[1] = sk->dst_ip6[1];
	peer->address[2] = sk->dst_ip6[2];
	peer->address[3] = sk->dst_ip6[3];
	peer->port = (__be16)sk->dst_port;
}

static __always_inline void clb_write4(struct bpf_sock_addr *ctx, const __be32 *address, __be16 port)
{
	ctx->user_ip4 = address[3];
	ctx->user_port = port;
}

static __always_inline void clb_write6(struct bpf_sock_addr *ctx, const __be32 *address, __be16 port)
{
	ctx->user_ip6[0] = address[0];
	ctx->user_ip6[1] = address[1];
	ctx->user_ip6[2] = address[2];
	ctx->user_ip6[3] = address[3];
	ctx->user_port = port;
}

#endif
