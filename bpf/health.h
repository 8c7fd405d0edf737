/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Passive health: a server with consecutive failed connects is ejected for a while, then probed with one connect. */
#ifndef CLB_HEALTH_H
#define CLB_HEALTH_H

#include "event.h"
#include "slot.h"

#define CLB_NS_PER_MS 1000000ULL

/* A copy of the record of a connected socket. */
struct clb_sent {
	struct clb_member member;
	__u64 started; /* 0: its outcome is not reported */
	__u32 began;
	__u32 server;
	__u32 at;
	__u16 rank;
	__u8 watched;
};

#define CLB_MOST_DOUBLINGS 16

/* Whether a server takes connects. When its ejection is over, the first connect probes it, and all others are kept away
 * for hold_ms more. */
static __always_inline int clb_takes(struct clb_server *server, __u32 hold_ms)
{
	int takes = 0;
	__u64 now;

	if (!server || !server->ejected_until)
		return 1;
	now = bpf_ktime_get_ns();
	if (now < server->ejected_until)
		return 0;
	bpf_spin_lock(&server->lock);
	if (!server->ejected_until) {
		takes = 1;
	} else if (now >= server->ejected_until) {
		server->ejected_until = now + hold_ms * CLB_NS_PER_MS;
		server->probing = 1;
		takes = 1;
	}
	bpf_spin_unlock(&server->lock);
	return takes;
}

/* Whether a server is kept away from connects now. One whose ejection is over and that waits for its probe is not. */
static __always_inline int clb_is_out(const struct clb_server *server)
{
	return server->ejected_until && bpf_ktime_get_ns() < server->ejected_until;
}

/* What distinguishes a server from a removed one with the same index, whose connections are not counted in this one: the
 * time of the first connect or datagram with a record, in 256 ns. It wraps around after 18 minutes, and is odd. */
static __always_inline __u32 clb_began(struct clb_server *server)
{
	__u32 now;

	if (!server->began) {
		now = bpf_ktime_get_ns() >> 8 | 1;
		bpf_spin_lock(&server->lock);
		if (!server->began)
			server->began = now;
		bpf_spin_unlock(&server->lock);
	}
	return server->began;
}

/* The server of this index, if it is still the one that began then. */
static __always_inline struct clb_server *clb_server_since(const __u32 *index, __u32 began)
{
	struct clb_server *server = clb_lookup(clb_servers, index);

	return server && server->began == began ? server : 0;
}

/* A walk over the rows of a tier that counts all servers and ejected servers. */
struct clb_count {
	__u64 generation;
	__u64 dice;
	__u32 from;
	__u32 first;
	__u32 tier;
	__u32 rows;
	__u32 counted;
	__u32 ejected;
};

static long clb_count_row(__u32 turn, struct clb_count *count)
{
	/* If there are too many rows to count all, count random ones. */
	__u32 at = count->rows > CLB_COUNTED ? count->first + clb_next_below(&count->dice, count->tier)
					     : count->first + turn * CLB_ROW;
	struct clb_row *row = clb_next_row(count->generation, count->from, at);
	__u32 bits = clb_bits_between(at, count->first, count->first + count->tier);

	if (!row)
		return 1;
	/* With atomics, the verifier does not follow every value of the counters. */
	__sync_fetch_and_add(&count->counted, clb_how_many(bits));
	__sync_fetch_and_add(&count->ejected, clb_how_many(bits & ~clb_bits_usable(row, 0)));
	return 0;
}

/* Whether at most half of a tier is ejected, with this many more ejected. */
CLB_GLOBAL int clb_half_stays(__u64 generation, __u32 from, __u32 first, __u32 tier, __u32 more)
{
	struct clb_count count = {
		.generation = generation,
		.from = from,
		.dice = clb_roll(),
		.first = first,
		.tier = tier,
		.ejected = more,
	};
	struct clb_count *walk = &count;

	count.rows = (first + tier - 1) / CLB_ROW - first / CLB_ROW + 1;
	/* Otherwise BCC's compiler loads a field at the end of each turn, and 5.10 accepts no loop whose last instruction
	 * before its start is not a jump. */
	clb_opaque(walk);
	clb_for_each(count.rows, CLB_COUNTED, clb_count_row, walk);
	return count.ejected * 2 <= count.counted;
}

/* Whether this many more servers of a tier may be ejected, or of the next one if the pool has lost that tier: always if there is a further tier to take over, else as long
 * as at most half of the tier is ejected. */
CLB_FUNCTION int clb_may_eject(const struct clb_virtual *pool, __u16 rank, __u32 more)
{
	__u32 first = 0, tier = 0, index;
	struct clb_slot *slot;

	for (index = 0; index < CLB_TIERS; index++) {
		first += tier;
		slot = first < pool->servers ? clb_slot_of(pool, first) : 0;
		if (!slot)
			return 0;
		tier = slot->tier;
		if (slot->rank >= rank)
			break;
	}
	return first + tier < pool->servers || clb_half_stays(pool->generation, pool->row, first, tier, more);
}

/* Eject a server, for longer each time in close succession. Failures of connects that were started before it was
 * ejected change nothing. */
static __always_inline int clb_eject(struct clb_server *server, const struct clb_virtual *pool, __u32 cause)
{
	__u64 now = bpf_ktime_get_ns(), most = pool->eject_most_ms * CLB_NS_PER_MS;
	__u64 duration = pool->eject_first_ms * CLB_NS_PER_MS;
	int ejected = 0;

	bpf_spin_lock(&server->lock);
	if (!server->ejected_until || server->probing) {
		if (!server->probing && now - server->changed_at > most)
			server->ejections = 0;
		duration <<= server->ejections < CLB_MOST_DOUBLINGS ? server->ejections : CLB_MOST_DOUBLINGS;
		server->ejected_until = now + (duration < most ? duration : most);
		server->changed_at = now;
		server->times_ejected++;
		if (server->ejections < 0xff)
			server->ejections++;
		server->probing = 0;
		server->cause = cause;
		ejected = 1;
	}
	bpf_spin_unlock(&server->lock);
	return ejected;
}

static __always_inline void clb_take_back(struct clb_server *server)
{
	bpf_spin_lock(&server->lock);
	server->ejected_until = 0;
	server->times_ejected--;
	server->ejections--;
	bpf_spin_unlock(&server->lock);
}

/* Count a failure. Returns the number of failures since the last success. */
static __always_inline __u32 clb_count_failure(struct clb_server *server, __u32 cause)
{
	__u32 in_row;

	__sync_fetch_and_add(&server->failures, 1);
	if (cause == CLB_CAUSE_REFUSED)
		__sync_fetch_and_add(&server->refused, 1);
	else if (cause == CLB_CAUSE_TIMED_OUT)
		__sync_fetch_and_add(&server->timed_out, 1);
	else if (cause == CLB_CAUSE_SILENT)
		__sync_fetch_and_add(&server->silent, 1);
	else if (cause == CLB_CAUSE_UNREACHABLE)
		__sync_fetch_and_add(&server->unreachable, 1);
	bpf_spin_lock(&server->lock);
	in_row = server->in_row;
	if (in_row < 0xffff)
		server->in_row = ++in_row;
	bpf_spin_unlock(&server->lock);
	return in_row;
}

/* A connect failed. Returns whether the server was ejected because of it. */
static __always_inline int clb_failed(const struct clb_virtual *pool, const struct clb_sent *sent, __u32 cause)
{
	struct clb_server *server = clb_server_since(&sent->server, sent->began);

	__u32 in_row;

	if (!server)
		return 0;
	in_row = clb_count_failure(server, cause);
	if (!pool || !pool->eject_after || in_row < pool->eject_after)
		return 0;
	if (server->ejected_until)
		return clb_eject(server, pool, cause);
	if (!clb_may_eject(pool, sent->rank, 1) || !clb_eject(server, pool, cause))
		return 0;
	/* If two servers fail at the same time, neither has counted the other. */
	if (clb_may_eject(pool, sent->rank, 0))
		return 1;
	clb_take_back(server);
	return 0;
}

/* Whether a connect that is given up now was unanswered for long enough to be a failure. */
static __always_inline int clb_was_silent(const struct clb_virtual *pool, const struct clb_sent *sent)
{
	__u64 ticks = (__u32)(clb_ticks() - sent->at);

	return pool && sent->at && pool->silent_after_ms &&
	       ticks * clb_tick_ns >= pool->silent_after_ms * CLB_NS_PER_MS;
}

/* A connect ended before it was established, and its record is released. With CLB_CAUSE_SILENT it was given up, and its
 * time decides whether it has failed. With a function more on the way to a row of clb_overflow there are too many calls in
 * each other for the verifier. */
CLB_FUNCTION int clb_ended_early(const struct clb_sent *sent, __u64 cookie, __u32 cause)
{
	const struct clb_vip *vip = &sent->member.vip;
	struct clb_virtual *pool;
	__u32 index;

	if (!(cause && sent->watched) && !sent->started)
		return 0;
	index = clb_find_virtual(vip, vip->port, clb_hash(vip->address));
	pool = index ? clb_lookup(clb_virtual, &index) : 0;
	if (cause == CLB_CAUSE_SILENT && !clb_was_silent(pool, sent))
		cause = CLB_CAUSE_NONE;
	if (sent->started)
		clb_report_outcome(cookie, &sent->member, sent->started, cause ? CLB_EVENT_FAILED : CLB_EVENT_GIVEN_UP,
				   cause);
	if (cause && sent->watched && clb_failed(pool, sent, cause) && sent->started)
		clb_report_outcome(cookie, &sent->member, sent->started, CLB_EVENT_EJECTED, cause);
	return 0;
}

/* A connect succeeded. */
static __always_inline void clb_succeeded(struct clb_server *server)
{
	__u64 now;

	if (!server->in_row && !server->ejected_until)
		return;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&server->lock);
	if (server->ejected_until) {
		server->ejected_until = 0;
		server->changed_at = now;
		server->probing = 0;
	}
	server->in_row = 0;
	bpf_spin_unlock(&server->lock);
}

#endif
