/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Decisions and outcomes for `clb-discovery trace`; only one array lookup while no trace is running. */
#ifndef CLB_EVENT_H
#define CLB_EVENT_H

#include "maps.h"

static __always_inline int clb_somebody_listens(void)
{
	__u32 which = CLB_LISTENS_EVENTS;
	__u64 *until = clb_lookup(clb_listener, &which);

	return until && *until && bpf_ktime_get_ns() < *until;
}

/* Set the fields that decisions and outcomes have in common; started is 0 in a decision. */
CLB_FUNCTION int clb_describe(struct clb_event *event, const struct clb_member *member, __u32 kind, __u64 started)
{
	event->time = bpf_ktime_get_ns();
	event->latency = started ? event->time - started : 0;
	event->kind = kind;
	event->cause = CLB_CAUSE_NONE;
	event->zero = 0;
	event->member = *member;
	return 0;
}

/* Report the outcome for the socket with this cookie. */
CLB_FUNCTION int clb_report_outcome(__u64 cookie, const struct clb_member *member, __u64 started, __u32 kind,
				    __u32 cause)
{
	struct clb_event *event = clb_reserve(clb_events, sizeof(*event));

	if (!event)
		return 0;
	clb_describe(event, member, kind, started);
	event->cause = cause;
	event->socket = cookie;
	event->cgroup = 0;
	event->process = 0;
	__builtin_memset(event->command, 0, sizeof(event->command));
	clb_submit(clb_events, event);
	return 0;
}

#endif
