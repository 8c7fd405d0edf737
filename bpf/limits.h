/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long a connect may be unanswered, and how long a connection.
 *
 * A connect ends by the kernel's own timers: BPF_SOCK_OPS_TIMEOUT_INIT sets the first one, from which the others follow,
 * and TCP_SYNCNT says how often the SYN is repeated. A connect that is answered at once pays for the first alone. */
#ifndef CLB_LIMITS_H
#define CLB_LIMITS_H

#include "btf.h"
#include "maps.h"

#define CLB_SOL_SOCKET 1
#define CLB_SO_KEEPALIVE 9
#define CLB_SOL_TCP 6
#define CLB_TCP_KEEPIDLE 4
#define CLB_TCP_KEEPINTVL 5
#define CLB_TCP_KEEPCNT 6
#define CLB_TCP_SYNCNT 7
#define CLB_TCP_USER_TIMEOUT 18

/* The timers of a connect with a limit. */
struct clb_timers {
	__u32 first;   /* the first one, in ticks */
	__u32 repeats; /* TCP_SYNCNT: the smallest one that repeats the SYN within a second */
};

/* The first timer with this TCP_SYNCNT; 0 if the end of such a connect is not certain. */
#define clb_first_timer(limit_ms, repeats) ((__u32)(clb_pace(repeats) * (limit_ms) >> 32))

/* Whether it is at most the kernel's own first timer, which is a second (RFC 6298). */
#define clb_fits(limit_ms, repeats) (clb_first_timer(limit_ms, repeats) - 1 < clb_longest)

static __always_inline struct clb_timers clb_timers_of(__u64 limit_ms)
{
	if (clb_fits(limit_ms, 1))
		return (struct clb_timers){ clb_first_timer(limit_ms, 1), 1 };
	if (clb_fits(limit_ms, 2))
		return (struct clb_timers){ clb_first_timer(limit_ms, 2), 2 };
	if (clb_fits(limit_ms, 3))
		return (struct clb_timers){ clb_first_timer(limit_ms, 3), 3 };
	if (clb_fits(limit_ms, 4))
		return (struct clb_timers){ clb_first_timer(limit_ms, 4), 4 };
	if (clb_fits(limit_ms, 5))
		return (struct clb_timers){ clb_first_timer(limit_ms, 5), 5 };
	if (clb_fits(limit_ms, 6))
		return (struct clb_timers){ clb_first_timer(limit_ms, 6), 6 };
	if (clb_fits(limit_ms, 7))
		return (struct clb_timers){ clb_first_timer(limit_ms, 7), 7 };
	return (struct clb_timers){ clb_first_timer(limit_ms, 8), 8 };
}

static __always_inline int clb_get_option(struct bpf_sock_ops *ctx, int level, int name, int *value)
{
	return bpf_getsockopt(ctx, level, name, value, sizeof(*value));
}

static __always_inline int clb_set_option(struct bpf_sock_ops *ctx, int level, int name, int value)
{
	return bpf_setsockopt(ctx, level, name, &value, sizeof(value));
}

/* A timer of an unanswered SYN has run out, and the connect goes on: bring forward its end, unless it is sooner already.
 * Where a program cannot read how often the application lets the SYN be repeated (5.10), wait until only the last
 * repetition is left: an earlier end of its own has come by then. */
static __always_inline void clb_bring_forward(struct bpf_sock_ops *ctx, struct clb_socket *socket, int repeated)
{
	int repeats = clb_timers_of(socket->connect_timeout_ms).repeats, own = 0;
	int is_known = !clb_get_option(ctx, CLB_SOL_TCP, CLB_TCP_SYNCNT, &own);

	if (is_known ? repeated || own <= repeats : repeated + 1 != repeats)
		return;
	if (!clb_set_option(ctx, CLB_SOL_TCP, CLB_TCP_SYNCNT, repeats))
		socket->repeats = own;
}

/* A connect has ended, or is established: leave its socket as the application has made it, for its next connect. */
static __always_inline void clb_restore(struct bpf_sock_ops *ctx, struct clb_socket *socket)
{
	if (!socket->repeats)
		return;
	clb_set_option(ctx, CLB_SOL_TCP, CLB_TCP_SYNCNT, socket->repeats);
	socket->repeats = 0;
}

#if CLB_CAN_READ_OPTIONS
#if !CLB_CAN_READ_KERNEL
#define CLB_KEEPIDLE_DEFAULT 7200 /* seconds; RFC 1122 section 4.2.3.6 */

/* Whether an application has set TCP_KEEPIDLE, as far as the option tells it: a shorter time of the system, too. */
static __always_inline int clb_has_keepidle(struct bpf_sock_ops *ctx)
{
	int value = 0;

	return clb_get_option(ctx, CLB_SOL_TCP, CLB_TCP_KEEPIDLE, &value) || value < CLB_KEEPIDLE_DEFAULT;
}
#endif

/* Whether an application has decided itself when a connection is dead. Many turn on SO_KEEPALIVE and leave its two hours
 * as they are, which is no decision. */
static __always_inline int clb_has_decided(struct bpf_sock_ops *ctx)
{
	int value = 0;

	if (clb_get_option(ctx, CLB_SOL_TCP, CLB_TCP_USER_TIMEOUT, &value) || value)
		return 1;
	if (clb_get_option(ctx, CLB_SOL_SOCKET, CLB_SO_KEEPALIVE, &value))
		return 1;
	return value && clb_has_keepidle(ctx);
}

/* A connection is established: let the kernel close it when its peer has not answered for so long, data
 * (TCP_USER_TIMEOUT) or, while it is idle, probes (keepalive, of which the last two come before that time). */
CLB_FUNCTION int clb_guard(struct bpf_sock_ops *ctx, __u32 dead_after_ms)
{
	__u32 seconds = (dead_after_ms + 999) / 1000, pause = seconds / 5;

	if (!pause)
		pause = 1;
	if (clb_has_decided(ctx))
		return 0;
	clb_set_option(ctx, CLB_SOL_TCP, CLB_TCP_USER_TIMEOUT, dead_after_ms);
	clb_set_option(ctx, CLB_SOL_TCP, CLB_TCP_KEEPIDLE, seconds - 2 * pause);
	clb_set_option(ctx, CLB_SOL_TCP, CLB_TCP_KEEPINTVL, pause);
	clb_set_option(ctx, CLB_SOL_TCP, CLB_TCP_KEEPCNT, 2);
	clb_set_option(ctx, CLB_SOL_SOCKET, CLB_SO_KEEPALIVE, 1);
	return 0;
}
#else
#define clb_guard(ctx, dead_after_ms) ((void)(ctx), (void)(dead_after_ms))
#endif

#endif
