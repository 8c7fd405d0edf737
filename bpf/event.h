/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What programs report while somebody listens: decisions and outcomes to `clb-discovery trace`, changes of health to the
 * sidecar. While nobody does, it costs one array lookup. */
#ifndef CLB_EVENT_H
#define CLB_EVENT_H

#include "maps.h"

/* Whether a ring buffer is read now; which is CLB_LISTENS_*. */
static __always_inline int clb_is_read(__u32 which)
{
	__u64 *until = clb_lookup(clb_listener, &which);

	return until && *until && bpf_ktime_get_ns() < *until;
}

static __always_inline int clb_somebody_listens(void)
{
	return clb_is_read(CLB_LISTENS_EVENTS);
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

/* Set the fields of a change; a function, so that the object describes the struct. */
CLB_FUNCTION int clb_describe_change(struct clb_change *change, const struct clb_server *server, __u32 index,
				     __u32 kind, __u32 cause)
{
	change->time = kind == CLB_CHANGE_NEEDED ? bpf_ktime_get_ns() : server->changed_at;
	change->server = index;
	change->began = server->began;
	change->kind = kind;
	change->in_row = server->in_row;
	change->cause = cause;
	change->zero = 0;
	return 0;
}

/* Report that the server with this index has gone out of service, is back, or fails and is needed. */
CLB_FUNCTION int clb_report_change(const struct clb_server *server, __u32 index, __u32 kind, __u32 cause)
{
	struct clb_change *change = clb_is_read(CLB_LISTENS_CHANGES) ? clb_reserve(clb_changes, sizeof(*change)) : 0;

	if (!change)
		return 0;
	clb_describe_change(change, server, index, kind, cause);
	clb_submit(clb_changes, change);
	return 0;
}

#endif
