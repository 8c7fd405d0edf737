/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What only the kernel's own structs tell of a socket. Their offsets come from the BTF of the running kernel, at load
 * (CO-RE). */
#ifndef CLB_BTF_H
#define CLB_BTF_H

#include "dialect.h"

#if CLB_CAN_READ_KERNEL
#include <bpf/bpf_core_read.h>

struct sock_common {
	struct {
		__s64 counter;
	} skc_cookie;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u8 sk_kern_sock : 1;
	__u64 sk_route_caps;
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 keepalive_time;
} __attribute__((preserve_access_index));

/* Whether the kernel itself has made this TCP socket, as MPTCP makes subflows: no close(2) ends it. Without BTF, every
 * socket counts as one of the kernel, because that is always right, and only slower. */
static __always_inline int clb_is_of_kernel(struct bpf_sock *sk)
{
	const struct sock *inside = (const struct sock *)bpf_skc_to_tcp_sock(sk);

	return !inside || BPF_CORE_READ_BITFIELD(inside, sk_kern_sock);
}

/* The cookie of a TCP socket, and whether the kernel itself has made it; 0 if it has no cookie, and so no record. The helper
 * for cookies would make one. */
static __always_inline __u64 clb_identify(struct bpf_sock_ops *ctx, struct bpf_sock *sk, int *is_of_kernel)
{
	const struct sock *inside = (const struct sock *)bpf_skc_to_tcp_sock(sk);

	(void)ctx;
	if (!inside)
		return 0;
	*is_of_kernel = BPF_CORE_READ_BITFIELD(inside, sk_kern_sock);
	return inside->__sk_common.skc_cookie.counter;
}

/* Whether the kernel found no route when it last looked for that of this TCP socket: then it can do nothing that a route
 * can. An error is no sign of that, because an ICMP error may have left it. */
static __always_inline int clb_lacks_route(struct bpf_sock *sk)
{
	const struct sock *inside = (const struct sock *)bpf_skc_to_tcp_sock(sk);

	return inside && !inside->sk_route_caps;
}

/* Whether an application has set TCP_KEEPIDLE. The option itself returns the time of the system to those that have not,
 * and each network namespace has one. */
static __always_inline int clb_has_keepidle(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct tcp_sock *inside = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	return !inside || inside->keepalive_time;
}
#else
#define clb_is_of_kernel(sk) ((void)(sk), 1)
#define clb_lacks_route(sk) ((void)(sk), 0)

static __always_inline __u64 clb_identify(struct bpf_sock_ops *ctx, struct bpf_sock *sk, int *is_of_kernel)
{
	(void)sk;
	*is_of_kernel = 1;
	return bpf_get_socket_cookie(ctx);
}
#endif

static __always_inline __u64 clb_cookie_of(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	int is_of_kernel;

	return clb_identify(ctx, sk, &is_of_kernel);
}

#endif
