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

/* How long a suspect server is passed over without a word from the sidecar. */
#define CLB_SUSPICION (1000 * CLB_NS_PER_MS)

/* Shortest time between two recalls of servers of a pool. */
#define CLB_RECALL_PAUSE (1000 * CLB_NS_PER_MS)

/* -1 if the network namespace of this context is home, or if that is not known; 0 if it is foreign. No branch decides,
 * because the verifier would follow each value through all that comes next. */
CLB_FUNCTION __s32 clb_is_home(void *ctx)
{
	__u32 index = 0;
	struct clb_home *home = clb_lookup(clb_home, &index);
	__u64 other;

	if (!home)
		return -1;
	other = (bpf_get_netns_cookie(ctx) ^ home->namespace) & home->known;
	other = (other >> 1 | (other & 1)) - 1;
	clb_opaque(other);
	return (__s64)other >> 63;
}

/* Whether outcomes in the network namespace of this context count, of connects whose record is watched. */
static __always_inline int clb_is_judge(void *ctx)
{
	return !CLB_CAN_JUDGE_LATE || clb_is_home(ctx);
}

/* Learn the network namespace of the loader, whose socket this is. */
static __always_inline void clb_learn_home(struct bpf_sock_addr *ctx, __u64 cookie)
{
	__u32 index = 0;
	struct clb_home *home = clb_lookup(clb_home, &index);

	if (home && home->learner == cookie) {
		home->namespace = bpf_get_netns_cookie(ctx);
		home->known = CLB_HOME_KNOWN;
	}
}

/* A time that has doubled so often, in nanoseconds. */
static __always_inline __u64 clb_doubled(__u32 first_ms, __u8 times, __u32 most_ms)
{
	__u64 duration = first_ms * CLB_NS_PER_MS, most = most_ms * CLB_NS_PER_MS;

	duration <<= times < CLB_MOST_DOUBLINGS ? times : CLB_MOST_DOUBLINGS;
	return duration < most ? duration : most;
}

/* Put a server out, for longer each time in close succession. The caller holds the lock. */
static __always_inline void clb_put_out(struct clb_server *server, __u64 now, __u32 first_ms, __u32 most_ms)
{
	server->ejected_until = now + clb_doubled(first_ms, server->ejections, most_ms);
	server->times_ejected++;
	if (server->ejections < 0xff)
		server->ejections++;
	server->probing = 0;
	server->suspect = 0;
}

/* Do what the sidecar has said since the last change of a server. If it has reached the server, the server is back; if it
 * has not, a suspect one is ejected. changed_at stays before its word, which so goes on to decide. The caller holds the
 * lock. */
static __always_inline void clb_obey(struct clb_server *server, __u64 decided_at, __u64 out_until, __u64 now,
				     __u32 first_ms, __u32 most_ms)
{
	if (!server->ejected_until || decided_at <= server->changed_at)
		return;
	if (!out_until) {
		server->ejected_until = 0;
		server->changed_at = decided_at;
		server->in_row = 0;
		server->probing = 0;
		server->suspect = 0;
	} else if (server->suspect) {
		clb_put_out(server, now, first_ms, most_ms);
	}
}

/* Whether a server that may be out takes a connect. When its ejection or the lease of the sidecar's word is over, the
 * first connect from home probes it, and all others are kept away for hold_ms more. If that probe has no outcome by then,
 * another connect probes, for twice as long, and so on. A foreign one never probes. A suspect server that the sidecar has
 * said nothing of in time takes all connects, and stays suspect: a later word still counts.
 *
 * hold_ms is 0 if its virtual server does not eject: then the outcome of a probe would not be recorded. */
CLB_GLOBAL int clb_takes_now(__u32 index, __u32 hold_ms, __u32 most_ms, __u32 steered, __s32 home)
{
	struct clb_steering *steering = clb_lookup(clb_steering, &index);
	struct clb_server *server = clb_lookup(clb_servers, &index);
	__u64 now = bpf_ktime_get_ns(), decided_at, out_until;
	int takes = 0, later;

	if (!server || !steering)
		return 1;
	decided_at = clb_decided_at(steering);
	out_until = steering->out_until;
	bpf_spin_lock(&server->lock);
	if (hold_ms) {
		clb_obey(server, decided_at, out_until, now, hold_ms, most_ms);
	} else {
		server->ejected_until = 0;
		server->probing = 0;
		server->suspect = 0;
	}
	later = decided_at > server->changed_at;
	if (!server->ejected_until) {
		takes = !steered || !later || now >= out_until;
	} else if (server->suspect) {
		takes = now >= server->ejected_until;
	} else if ((now & (__u64)(__s64)home) >= (later ? out_until : server->ejected_until)) {
		/* A branch for home would tell the verifier its value, and double all that comes next. */
		server->ejected_until = now + clb_doubled(hold_ms, server->probing, most_ms);
		if (server->probing < 0xff)
			server->probing++;
		if (later) /* else others would go by the lease, too, which is over */
			server->changed_at = decided_at;
		takes = 1;
	}
	bpf_spin_unlock(&server->lock);
	return takes;
}

/* Whether a server may be out: most are not, and then nothing else needs to be known. */
static __always_inline int clb_may_be_out(const struct clb_virtual *pool, const struct clb_server *server)
{
	return server && server->ejected_until | (pool->flags & CLB_STEERED);
}

/* Whether the last connect to a server failed. */
static __always_inline int clb_fails(const struct clb_server *server)
{
	return server && server->in_row;
}

/* Whether a server has failed often enough to be ejected, and stays in service because too many others are out. A connect
 * to it most likely fails, so it is better spent on one of those that waits for its probe. */
static __always_inline int clb_has_to_stay(const struct clb_virtual *pool, const struct clb_server *server)
{
	return server && pool->eject_after && server->in_row >= pool->eject_after && !server->ejected_until;
}

/* Whether a server with this index takes a connect, if clb_may_be_out. */
static __always_inline int clb_takes_although_out(const struct clb_virtual *pool, __u32 index, __s32 home)
{
	return clb_takes_now(index, pool->eject_after ? pool->eject_first_ms : 0, pool->eject_most_ms,
			     pool->flags & CLB_STEERED, home);
}

/* Whether a server with this index takes a connect. */
static __always_inline int clb_takes(const struct clb_virtual *pool, const struct clb_server *server, __u32 index,
				     __s32 home)
{
	return !clb_may_be_out(pool, server) || clb_takes_although_out(pool, index, home);
}

/* Whether a server is kept away from connects now. For waits see clb_is_out_at. */
static __always_inline int clb_is_out(const struct clb_server *server, const __u32 *index, __u64 steered, __u64 waits)
{
	struct clb_steering *steering;

	if (!(server->ejected_until | steered))
		return 0;
	steering = clb_lookup(clb_steering, index);
	return steering && clb_is_out_at(bpf_ktime_get_ns(), server, steering, steered, waits);
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
	__u64 dice;
	__u32 index; /* of the virtual server */
	__u32 first;
	__u32 tier;
	__u32 rows;
	__u32 counted;
	__u32 ejected;
};

static long clb_count_row(__u32 turn, struct clb_count *count)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &count->index);
	/* If there are too many rows to count all, count random ones. */
	__u32 at = count->rows > CLB_COUNTED ? count->first + clb_next_below(&count->dice, count->tier)
					     : count->first + turn * CLB_ROW;
	struct clb_row *row = pool ? clb_next_row(pool->generation, pool->row, at) : 0;
	__u32 bits = clb_bits_between(at, count->first, count->first + count->tier), usable;

	if (!row)
		return 1;
	usable = clb_bits_usable(row, bpf_ktime_get_ns(), clb_is_steered(pool), ~0ULL);
	/* With atomics, the verifier does not follow every value of the counters. */
	__sync_fetch_and_add(&count->counted, clb_how_many(bits));
	__sync_fetch_and_add(&count->ejected, clb_how_many(bits & ~usable));
	return 0;
}

/* Whether at most half of a tier of the virtual server with this index is ejected, with this many more ejected. */
CLB_GLOBAL int clb_half_stays(__u32 index, __u32 first, __u32 tier, __u32 more)
{
	struct clb_count count = {
		.dice = clb_roll(),
		.index = index,
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

/* Whether this many more servers of a tier may be ejected; if the pool has lost that tier, of the next one. They may if
 * there is a further tier to take over, else as long as at most half of the tier is ejected. */
CLB_FUNCTION int clb_may_eject(const struct clb_virtual *pool, __u32 index, __u16 rank, __u32 more)
{
	__u32 first = 0, tier = 0, turn;
	struct clb_slot *slot;

	for (turn = 0; turn < CLB_TIERS; turn++) {
		first += tier;
		slot = first < pool->servers ? clb_slot_of(pool, first) : 0;
		if (!slot)
			return 0;
		tier = slot->tier;
		if (slot->rank >= rank)
			break;
	}
	return first + tier < pool->servers || clb_half_stays(index, first, tier, more);
}

/* What a failure has made of a server. */
enum clb_turn_out {
	CLB_STAYS,    /* nothing */
	CLB_GOES_OUT, /* it is out now */
	CLB_STAYS_OUT /* it was out, and its probe has failed */
};

/* Eject a server. Failures of connects that were started before it was ejected change nothing. */
CLB_FUNCTION enum clb_turn_out clb_eject(struct clb_server *server, const struct clb_virtual *pool, __u32 cause)
{
	__u64 now = bpf_ktime_get_ns(), most = pool->eject_most_ms * CLB_NS_PER_MS;
	enum clb_turn_out becomes = CLB_STAYS;

	bpf_spin_lock(&server->lock);
	if (!server->ejected_until || server->probing || server->suspect) {
		becomes = server->probing ? CLB_STAYS_OUT : CLB_GOES_OUT;
		if (!server->ejected_until && now - server->changed_at > most)
			server->ejections = 0;
		clb_put_out(server, now, pool->eject_first_ms, pool->eject_most_ms);
		server->changed_at = now;
		server->cause = cause;
	}
	bpf_spin_unlock(&server->lock);
	return becomes;
}

/* Pass a server over for a moment, in which the sidecar probes it. */
CLB_FUNCTION enum clb_turn_out clb_suspect(struct clb_server *server, const struct clb_virtual *pool, __u32 cause)
{
	__u64 now = bpf_ktime_get_ns(), most = pool->eject_most_ms * CLB_NS_PER_MS;
	enum clb_turn_out becomes = CLB_STAYS;

	bpf_spin_lock(&server->lock);
	if (!server->ejected_until || (server->suspect && now >= server->ejected_until)) {
		if (now - server->changed_at > most) /* an ejection that follows would see only the suspicion */
			server->ejections = 0;
		server->ejected_until = now + CLB_SUSPICION;
		server->changed_at = now;
		server->suspect = 1;
		server->cause = cause;
		becomes = CLB_GOES_OUT;
	}
	bpf_spin_unlock(&server->lock);
	return becomes;
}

/* Undo what one failure has done, unless more has happened since. */
static __always_inline void clb_take_back(struct clb_server *server, int ejected)
{
	bpf_spin_lock(&server->lock);
	if (ejected) {
		server->times_ejected--;
		server->ejections--;
	}
	if (ejected || server->suspect) {
		server->ejected_until = 0;
		server->suspect = 0;
	}
	bpf_spin_unlock(&server->lock);
}

/* Count a failure. Returns the number of failures since the last success, of a connect or of the sidecar. */
CLB_FUNCTION __u32 clb_count_failure(struct clb_server *server, const struct clb_steering *steering,
				     const struct clb_virtual *pool, __u32 cause)
{
	__u64 now = bpf_ktime_get_ns(), decided_at = clb_decided_at(steering), out_until = steering->out_until;
	__u32 first_ms = pool ? pool->eject_first_ms : 0, most_ms = pool ? pool->eject_most_ms : 0, in_row;

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
	clb_obey(server, decided_at, out_until, now, first_ms, most_ms);
	in_row = server->in_row;
	if (in_row < 0xffff)
		server->in_row = ++in_row;
	bpf_spin_unlock(&server->lock);
	return in_row;
}

/* Whether a failure that is not enough to eject a server makes it suspect: only while the sidecar is there to probe. */
static __always_inline int clb_may_suspect(const struct clb_virtual *pool, const struct clb_sent *sent,
					   const struct clb_server *server)
{
	return pool->flags & CLB_SUSPECTS && !clb_is_out(server, &sent->server, clb_is_steered(pool), ~0ULL) &&
	       clb_is_read(CLB_LISTENS_CHANGES);
}

/* Let the next connect probe a random server that is out, of a random row of the virtual server with this index, as if
 * its time and the lease of the sidecar's word were over. A suspect one takes connects, as after its second. */
CLB_GLOBAL int clb_recall(__u32 index)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &index);
	struct clb_steering *steering;
	struct clb_server *server;
	__u32 at, bits, from;
	struct clb_row *row;
	__u64 decided_at;

	row = clb_random_row(pool, &at);
	if (!row)
		return 0;
	bits = clb_bits_between(at, 0, pool->servers) & ~clb_bits_usable(row, bpf_ktime_get_ns(), 0, ~0ULL);
	from = bits & 0xff << at % CLB_ROW;
	if (!bits)
		return 0;
	at = clb_lowest(from ? from : bits);
	clb_forget(at);
	server = clb_server_of(clb_slot_at(row, at));
	steering = clb_steering_of(clb_slot_at(row, at));
	if (!server || !steering)
		return 0;
	decided_at = clb_decided_at(steering);
	bpf_spin_lock(&server->lock);
	if (server->ejected_until && server->probing != 1) { /* else a connect has just begun to probe it */
		server->ejected_until = 1;
		if (decided_at > server->changed_at) /* as in clb_takes_now */
			server->changed_at = decided_at;
	}
	bpf_spin_unlock(&server->lock);
	return 0;
}

/* Whether servers that are out are recalled: one that fails connects stays because too many others are out, and those
 * may have recovered. For a tier that has died as a whole that is in vain: so not for each failure, but for those in a
 * row that are eject_after doubled any number of times, and once in CLB_RECALL_PAUSE. */
static __always_inline int clb_recalls(const struct clb_virtual *pool, __u32 in_row)
{
	struct clb_server *refusal = clb_lookup(clb_servers, &pool->refusal);
	__u32 times = in_row / pool->eject_after;
	__u64 now = bpf_ktime_get_ns();

	if (!refusal)
		return 0;
	if ((!times || times & (times - 1) || in_row % pool->eject_after) &&
	    now - refusal->changed_at < CLB_RECALL_PAUSE)
		return 0;
	refusal->changed_at = now;
	return 1;
}

/* Eject a server of the virtual server with this index, or make it suspect, if it may be. Returns whether it was ejected.
 *
 * in_row is 0 if its connect still waits. */
static __always_inline int clb_pass_over(const struct clb_virtual *pool, __u32 index, const struct clb_sent *sent,
					 struct clb_server *server, __u32 cause, __u32 in_row)
{
	int ejects = in_row && (server->probing || in_row >= pool->eject_after);
	enum clb_turn_out becomes;
	__u32 more;

	if (!ejects && !clb_may_suspect(pool, sent, server))
		return 0;
	/* If the sidecar keeps it out, it counts as out already, and another one does not have to stay for it. */
	more = !clb_is_out(server, &sent->server, clb_is_steered(pool), ~0ULL);
	if (!server->ejected_until && !clb_may_eject(pool, index, sent->rank, more)) {
		if (clb_recalls(pool, in_row)) {
			clb_report_change(server, sent->server, CLB_CHANGE_NEEDED, cause);
			if (ejects)
				clb_recall(index);
		}
		return 0;
	}
	becomes = ejects ? clb_eject(server, pool, cause) : clb_suspect(server, pool, cause);
	if (becomes == CLB_STAYS)
		return 0;
	/* If two servers fail at the same time, neither has counted the other. */
	if (becomes == CLB_GOES_OUT && !clb_may_eject(pool, index, sent->rank, 0)) {
		clb_take_back(server, ejects);
		return 0;
	}
	clb_report_change(server, sent->server, ejects ? CLB_CHANGE_EJECTED : CLB_CHANGE_SUSPECT, cause);
	return ejects;
}

/* A connect failed to a server of the virtual server with this index. Returns whether the server was ejected because of
 * it. */
static __always_inline int clb_failed(const struct clb_virtual *pool, __u32 index, const struct clb_sent *sent,
				      __u32 cause)
{
	struct clb_server *server = clb_server_since(&sent->server, sent->began);
	struct clb_steering *steering = clb_lookup(clb_steering, &sent->server);
	__u32 in_row;

	if (!server || !steering)
		return 0;
	in_row = clb_count_failure(server, steering, pool, cause);
	return pool && pool->eject_after && clb_pass_over(pool, index, sent, server, cause, in_row);
}

/* Whether a connect that is given up now was unanswered for long enough to be a failure. */
static __always_inline int clb_was_silent(const struct clb_virtual *pool, const struct clb_sent *sent)
{
	__u64 ticks = (__u32)(clb_ticks() - sent->at);

	return pool && sent->at && pool->silent_after_ms &&
	       ticks * clb_tick_ns >= pool->silent_after_ms * CLB_NS_PER_MS;
}

/* A connect ended before it was established, and its record is released. With CLB_CAUSE_SILENT it was given up, and its
 * time decides whether it has failed. */
CLB_FUNCTION int clb_ended_early(const struct clb_sent *sent, __u64 cookie, __u32 cause)
{
	const struct clb_virtual *pool;
	__u32 index;

	if (!(cause && sent->watched) && !sent->started)
		return 0;
	pool = clb_virtual_of(&sent->member.vip, &index);
	if (cause == CLB_CAUSE_SILENT && !clb_was_silent(pool, sent))
		cause = CLB_CAUSE_NONE;
	if (sent->started)
		clb_report_outcome(cookie, &sent->member, sent->started, cause ? CLB_EVENT_FAILED : CLB_EVENT_GIVEN_UP,
				   cause);
	if (cause && sent->watched && clb_failed(pool, index, sent, cause) && sent->started)
		clb_report_outcome(cookie, &sent->member, sent->started, CLB_EVENT_EJECTED, cause);
	return 0;
}

/* A connect still waits, and would be a failure if it were given up now. An application without a time-out waits for
 * seconds, in which others would be sent to a dead server: so its server becomes suspect at once. */
CLB_FUNCTION int clb_doubt(const struct clb_sent *sent)
{
	struct clb_server *server = clb_server_since(&sent->server, sent->began);
	const struct clb_virtual *pool;
	__u32 index;

	pool = clb_virtual_of(&sent->member.vip, &index);

	if (server && pool && pool->eject_after && clb_was_silent(pool, sent))
		clb_pass_over(pool, index, sent, server, CLB_CAUSE_SILENT, 0);
	return 0;
}

/* A connect succeeded to the server with this index. */
static __always_inline void clb_succeeded(struct bpf_sock_ops *ctx, struct clb_server *server, __u32 index)
{
	struct clb_steering *steering;
	__u64 now, decided_at;
	int returned = 0;

	if (!(server->in_row || server->ejected_until) || !clb_is_judge(ctx))
		return;
	steering = clb_lookup(clb_steering, &index);
	if (!steering)
		return;
	now = bpf_ktime_get_ns();
	decided_at = clb_decided_at(steering);
	if (steering->out_until) /* else the sidecar has said already that the server is back */
		decided_at = 0;
	bpf_spin_lock(&server->lock);
	if (server->ejected_until) {
		returned = decided_at <= server->changed_at;
		server->ejected_until = 0;
		server->changed_at = now;
		server->probing = 0;
		server->suspect = 0;
	}
	server->in_row = 0;
	bpf_spin_unlock(&server->lock);
	if (returned)
		clb_report_change(server, index, CLB_CHANGE_RETURNED, CLB_CAUSE_NONE);
}

#endif
