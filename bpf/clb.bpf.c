// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Programs on the connect hooks of a cgroup: a connect(2) to a VIP is sent to a real server of its pool, before the
 * kernel has looked at the address. Afterwards nothing of this is on the path.
 */
#include "schedule.h"

#define CLB_ECONNREFUSED 111
#define CLB_PROTOCOL_TCP 6
#define CLB_PROTOCOL_UDP 17

#ifndef CLB_BCC
char LICENSE[] SEC("license") = "Dual BSD/GPL";
#endif

/* Whether a connect hook may choose the errno (kernel 6.1); set by the loader, so that an older verifier never meets the
 * call. */
#ifdef CLB_BCC
#define clb_can_set_errno CLB_CAN_SET_ERRNO
#else
const volatile __u32 clb_can_set_errno = 0;
#endif

enum clb_verdict {
	CLB_DENY = 0,
	CLB_ALLOW = 1,
};

static __always_inline enum clb_verdict clb_refuse(void)
{
	if (clb_can_set_errno)
		bpf_set_retval(-CLB_ECONNREFUSED);
	return CLB_DENY;
}

static __always_inline int clb_is_balanced(const struct bpf_sock_addr *ctx)
{
	return ctx->protocol == CLB_PROTOCOL_TCP || ctx->protocol == CLB_PROTOCOL_UDP;
}

static __always_inline void clb_count(const struct clb_slot *slot)
{
	__u64 *connects = clb_lookup(clb_counters, &slot->member);

	/* Atomic although per CPU: a preemptible kernel may run two programs on one CPU at a time. */
	if (connects)
		__sync_fetch_and_add(connects, 1);
}

/* One per family: how the context says where the application wants to go, and where it is sent instead. user_port is 32
 * bits wide with the port, in network byte order, in the lower half. */

static __always_inline struct clb_vip clb_wanted4(const struct bpf_sock_addr *ctx)
{
	struct clb_vip vip = {
		.address = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 },
		.port = (__be16)ctx->user_port,
		.protocol = (__u8)ctx->protocol,
	};
	return vip;
}

static __always_inline struct clb_vip clb_wanted6(const struct bpf_sock_addr *ctx)
{
	struct clb_vip vip = {
		.address = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] },
		.port = (__be16)ctx->user_port,
		.protocol = (__u8)ctx->protocol,
	};
	return vip;
}

static __always_inline void clb_redirect4(struct bpf_sock_addr *ctx, const struct clb_member *server)
{
	ctx->user_ip4 = server->address[3];
	ctx->user_port = server->port;
}

static __always_inline void clb_redirect6(struct bpf_sock_addr *ctx, const struct clb_member *server)
{
	ctx->user_ip6[0] = server->address[0];
	ctx->user_ip6[1] = server->address[1];
	ctx->user_ip6[2] = server->address[2];
	ctx->user_ip6[3] = server->address[3];
	ctx->user_port = server->port;
}

CLB_PROGRAM("cgroup/connect4")
int clb_connect4(struct bpf_sock_addr *ctx)
{
	struct clb_vip wanted = clb_wanted4(ctx);
	struct clb_slot *slot = clb_is_balanced(ctx) ? clb_schedule(&wanted) : 0;

	if (!slot)
		return CLB_ALLOW;
	clb_count(slot);
	if (clb_refuses(slot))
		return clb_refuse();
	clb_redirect4(ctx, &slot->member);
	return CLB_ALLOW;
}

/* Dual-stack sockets come here with IPv4-mapped addresses, which are looked up and written back as they are. */
CLB_PROGRAM("cgroup/connect6")
int clb_connect6(struct bpf_sock_addr *ctx)
{
	struct clb_vip wanted = clb_wanted6(ctx);
	struct clb_slot *slot = clb_is_balanced(ctx) ? clb_schedule(&wanted) : 0;

	if (!slot)
		return CLB_ALLOW;
	clb_count(slot);
	if (clb_refuses(slot))
		return clb_refuse();
	clb_redirect6(ctx, &slot->member);
	return CLB_ALLOW;
}
