/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Find the slot that serves a connect to a VIP. */
#ifndef CLB_CHOOSE_H
#define CLB_CHOOSE_H

#include "schedule.h"

/* Draws in a tier with an ejected server, before its servers are weighed. */
#define CLB_DRAWS 3

/* Whether an address with this hash may be a VIP. If not, it certainly is none. */
static __always_inline int clb_may_be_vip(__u64 hash)
{
	__u32 bit = hash >> (64 - CLB_FILTER_BITS), index = bit / 64;
	__u64 *bits = clb_lookup(clb_filter, &index);

	return bits && *bits >> (bit % 64) & 1;
}

/* A walk over the rows of a pool, from its lowest tier on, to find a server that takes connects. */
struct clb_walk {
	__u64 now;
	__u64 dice;
	__u32 index; /* of the virtual server */
	__u32 servers;
	__u32 at;     /* index of a slot in the next row */
	__u32 looks;  /* rows of this tier looked at so far, if not all of it is looked at */
	__u32 usable; /* bits of the slots of this row */
	__u32 found;  /* index of the found slot */
	__s32 home;   /* as in clb_search */
};

#if CLB_CAN_LOOP
/* Go on after a row without a usable server. */
#define clb_go_on(walk, first, tier) ((void)(first), (void)(tier), (walk)->at += CLB_ROW)
#else
/* Go on after a row without a usable server: with the next row of the pool. In a pool with too many rows, with the
 * next row of the tier, or a random one of a large tier; after CLB_LOOKS_IN_TIER rows, with the first row of the next
 * tier. */
static __always_inline void clb_go_on(struct clb_walk *walk, __u32 first, __u32 tier)
{
	__u32 next = walk->at + CLB_ROW, end = first + tier, looks = walk->looks + 1;

	if (walk->servers > CLB_ROW * CLB_LOOKS) {
		if (tier > CLB_ROW * (CLB_LOOKS_IN_TIER - 1))
			next = first + clb_next_below(&walk->dice, tier);
		if (next >= end || (looks >= CLB_LOOKS_IN_TIER && end < walk->servers)) {
			next = end;
			looks = 0;
		}
	}
	walk->at = next;
	walk->looks = looks;
	clb_forget(walk->at); /* otherwise the verifier follows each possible value */
	clb_forget(walk->looks);
}
#endif

static long clb_look(__u32 turn, struct clb_walk *walk)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &walk->index);
	struct clb_row *row = pool ? clb_next_row(pool->generation, pool->row, walk->at) : 0;
	const struct clb_slot *slot;
	__u32 index, first, tier;

	(void)turn;
	if (!row || walk->at >= walk->servers)
		return 1;
	slot = clb_slot_at(row, walk->at);
	first = slot->first;
	tier = slot->tier;
	walk->usable = clb_bits_usable(row, walk->now, clb_is_steered(pool), ~(__s64)walk->home);
	clb_forget(walk->usable);
	if (!walk->usable) {
		clb_go_on(walk, first, tier);
		return 0;
	}
	/* Slots are in the order of tiers; those after the last one of the pool are empty. */
	index = walk->at / CLB_ROW * CLB_ROW + clb_lowest(walk->usable);
	if (index < walk->servers)
		walk->found = index;
	return 1;
}

/* The first slot whose server can take the connect, in the lowest tier with one, of the virtual server with this index;
 * CLB_NOBODY if all servers of all tiers are ejected. A foreign connect must not probe, so for it a server stays ejected
 * until its probe. */
CLB_GLOBAL __u32 clb_find_taker(__u32 index, __s32 home)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &index);
	struct clb_walk walk = {
		.now = bpf_ktime_get_ns(),
		.dice = clb_roll(),
		.index = index,
		.found = CLB_NOBODY,
		.home = home,
	};

	if (!pool)
		return CLB_NOBODY;
	walk.servers = pool->servers;
	clb_for_each(walk.servers / CLB_ROW + 1, CLB_LOOKS, clb_look, &walk);
	clb_forget(walk.found);
	return walk.found;
}

/* A choice by weight among the servers of a tier that are not ejected. */
struct clb_scale {
	__u64 dice;
	__u32 index; /* of the virtual server */
	__u32 first;
	__u32 tier;
	__u32 rows;       /* of the tier */
	__u32 from;       /* the row of the tier to begin with */
	__u32 usable;     /* usable servers so far */
	__u32 sum;        /* sum of their weights */
	__u32 found;      /* slot of the server chosen by weight */
	__u32 zeros;      /* servers of weight 0, including ejected ones */
	__u32 zeros_left; /* usable servers of weight 0 */
	__u32 found_zero; /* slot of the server chosen among these */
};

/* Whether the last added part is chosen, with the probability of its share of the whole. */
static __always_inline int clb_falls_to(struct clb_scale *scale, __u32 part, __u32 whole)
{
	return clb_next_below(&scale->dice, whole) < part;
}

static __always_inline void clb_weigh_slot(struct clb_scale *scale, __u32 weight, int usable, __u32 index)
{
	if (!weight)
		__sync_fetch_and_add(&scale->zeros, 1);
	if (!usable)
		return;
	if (weight) {
		__sync_fetch_and_add(&scale->sum, weight);
		if (clb_falls_to(scale, weight, scale->sum))
			scale->found = index;
	} else {
		__sync_fetch_and_add(&scale->zeros_left, 1);
		if (clb_falls_to(scale, 1, scale->zeros_left))
			scale->found_zero = index;
	}
}

static long clb_weigh_row(__u32 turn, struct clb_scale *scale)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &scale->index);
	__u32 number = scale->from + turn, at, column, bits, usable;
	struct clb_row *row;

	if (number >= scale->rows)
		number -= scale->rows;
	at = (scale->first / CLB_ROW + number) * CLB_ROW;
	row = pool ? clb_next_row(pool->generation, pool->row, at) : 0;
	if (!row || scale->usable >= CLB_WEIGHED)
		return 1;
	bits = clb_bits_between(at, scale->first, scale->first + scale->tier);
	usable = clb_bits_usable(row, bpf_ktime_get_ns(), clb_is_steered(pool), ~0ULL);
	clb_forget(bits); /* otherwise the verifier follows each possible value */
	clb_forget(usable);
	__sync_fetch_and_add(&scale->usable, clb_how_many(bits & usable));
	for (column = 0; column < CLB_ROW; column++) {
		clb_opaque(column);
		if (bits >> column & 1)
			clb_weigh_slot(scale, clb_slot_at(row, column)->weight, usable >> column & 1,
				       at / CLB_ROW * CLB_ROW + column);
	}
	return 0;
}

/* Choose by weight among the servers that are not ejected in a tier of the virtual server with this index: all of them,
 * or CLB_WEIGHED of many, from a slot on, in a circle. Neighbours often fail together, and the next usable server alone
 * must not take over for all of them. All servers of weight 0 together have the share of one server of weight 1 (RFC 2782).
 * CLB_NOBODY: all that were looked at are ejected. */
CLB_GLOBAL __u32 clb_weigh(__u32 index, __u32 first, __u32 tier, __u32 from)
{
	struct clb_scale scale = {
		.index = index,
		.first = first,
		.tier = tier,
		.rows = (first + tier - 1) / CLB_ROW - first / CLB_ROW + 1,
		.from = from / CLB_ROW - first / CLB_ROW,
		.dice = clb_roll(),
	};
	__u32 whole;

	clb_for_each(scale.rows, CLB_WEIGHED_ROWS, clb_weigh_row, &scale);
	if (!scale.sum && !scale.zeros_left)
		return CLB_NOBODY;
	whole = scale.sum * (scale.zeros ? scale.zeros : 1) + scale.zeros_left;
	if (!scale.sum || clb_falls_to(&scale, scale.zeros_left, whole))
		scale.found = scale.found_zero;
	clb_forget(scale.found);
	return scale.found;
}

/* Give back the turns that were taken in vain in a lower tier: a connect must take exactly one turn, in the tier that
 * serves it; otherwise it would always get the same servers there. */
static __always_inline void clb_give_back_turns(struct clb_search *search)
{
	const struct clb_virtual *pool = search->pool;
	struct clb_server *turns = pool ? clb_lookup(clb_servers, &pool->refusal) : 0;

	if (turns)
		__sync_fetch_and_add(&turns->failures, -search->turns);
	search->turns = 0;
}

/* As clb_find_taker, after the server has taken the connect: if it waits for its probe, this connect is it. */
CLB_GLOBAL __u32 clb_find_and_take(__u32 index, __s32 home)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &index);
	struct clb_slot *slot;
	__u32 taker = CLB_NOBODY;
	__u64 turn = 0;

	if (!pool)
		return CLB_NOBODY;
	do {
		taker = clb_find_taker(index, home);
		slot = taker < pool->servers ? clb_slot_of(pool, taker) : 0;
		if (!slot || clb_takes(pool, clb_server_of(slot), slot->server, home))
			break;
		turn++;           /* another connect has just started its probe */
		clb_opaque(turn); /* so that the turn ends with a jump, see clb_half_stays */
	} while (turn < CLB_SEARCHES);
	return taker;
}

/* The result of clb_elsewhere. */
static __always_inline __u64 clb_found(__u32 at, __u32 turns)
{
	return (__u64)turns << 32 | at;
}

/* The drawn server is ejected: schedule in the tier in use, which is the lowest one with a server that takes connects.
 * Drawing again keeps the shares of the other servers. Returns the index of a slot of the virtual server with this
 * index, and in the upper half the number of turns taken for this connect, of which `turns` are taken already. */
CLB_GLOBAL __u64 clb_elsewhere(__u32 index, __u32 by_chance, __s32 home, __u32 turns)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &index);
	struct clb_search search = { .pool = pool, .by_chance = by_chance, .turns = turns };
	struct clb_server *server;
	struct clb_slot *slot;
	__u32 taker, found;
	__u64 draw; /* of 64 bits, because the verifier forgets the value of a half that is spilled */

	if (!pool)
		return CLB_NOBODY;
	search.tier = pool->tier;
	taker = clb_find_and_take(index, home);
	slot = taker < pool->servers ? clb_slot_of(pool, taker) : 0;
	server = slot ? clb_server_of(slot) : 0;
	if (!slot) { /* all that were looked at are ejected: an attempt is better than a refusal, and may bring one back */
		draw = 0;
		do {
			search.at = clb_below(pool->servers);
			slot = clb_slot_of(pool, search.at);
			if (slot && clb_takes(pool, clb_server_of(slot), slot->server, home))
				break;
			draw++;
			clb_opaque(draw);
		} while (draw < CLB_DRAWS);
		return clb_found(search.at, search.turns);
	}
	if (server && server->ejected_until && !server->suspect) /* this connect is its probe */
		return clb_found(taker, search.turns);
	if (slot->first != search.first) {
		search.first = slot->first;
		search.tier = slot->tier;
		clb_give_back_turns(&search);
	}
	draw = 0;
	do {
		/* After the first draw of the scheduler, draw by weight alone, which is less to verify. */
		slot = draw ? clb_random(&search) : clb_draw(&search);
		if (slot && clb_takes(pool, clb_server_of(slot), slot->server, home))
			return clb_found(search.at, search.turns);
		draw++;
		clb_opaque(draw);
	} while (draw < CLB_DRAWS);
	found = clb_weigh(index, search.first, search.tier, search.first + clb_below(search.tier));
	if (found >= pool->servers) /* not all of the tier was looked at */
		found = clb_weigh(index, search.first, search.tier, taker);
	return clb_found(found < pool->servers ? found : taker, search.turns);
}

/* A server that is out and waits for its probe, of a random row of the virtual server with this index: the connect is it.
 * Returns the index of its slot; CLB_NOBODY if there is none. */
CLB_GLOBAL __u32 clb_find_waiting(__u32 index, __s32 home)
{
	const struct clb_virtual *pool = clb_lookup(clb_virtual, &index);
	__u64 now = bpf_ktime_get_ns(), steered;
	struct clb_slot *slot;
	struct clb_row *row;
	__u32 at, bits;

	row = clb_random_row(pool, &at);
	if (!row)
		return CLB_NOBODY;
	steered = clb_is_steered(pool);
	bits = clb_bits_between(at, 0, pool->servers) & ~clb_bits_usable(row, now, steered, ~0ULL);
	clb_forget(bits); /* otherwise the verifier follows each possible value */
	bits &= clb_bits_usable(row, now, steered, ~(__s64)home);
	if (!bits)
		return CLB_NOBODY;
	at = at / CLB_ROW * CLB_ROW + clb_lowest(bits);
	clb_forget(at);
	slot = clb_slot_at(row, at);
	return clb_takes(pool, clb_server_of(slot), slot->server, home) ? at : CLB_NOBODY;
}

/* What matters of the chosen slot. A copy, because the verifier follows pointers into each map separately. */
struct clb_choice {
	__be32 address[4];
	__be16 port; /* 0: connects are refused */
	__u16 rank;
	__u32 server;
};

/* A connect, or a datagram, to what may be a VIP. */
struct clb_request {
	struct clb_vip asked; /* the address and port that the application gives */
	struct clb_search search;
	struct clb_choice to;
	struct clb_server *server; /* of the choice */
};

/* Choose a slot, which may be missing. Returns whether it is there. */
static __always_inline int clb_choose(struct clb_request *request, const struct clb_slot *slot)
{
	if (!slot)
		return 0;
	request->to.address[0] = slot->address[0];
	request->to.address[1] = slot->address[1];
	request->to.address[2] = slot->address[2];
	request->to.address[3] = slot->address[3];
	request->to.port = slot->port;
	request->to.rank = slot->rank;
	request->to.server = slot->server;
	request->search.first = slot->first;
	request->search.tier = slot->tier;
	request->server = clb_lookup(clb_servers, &request->to.server);
	return 1;
}

/* Find the real server for a request; the exact port wins over the wildcard. Returns 0 if it is not to a VIP.
 *
 * hash is that of its address. */
static __always_inline int clb_schedule(struct bpf_sock_addr *ctx, struct clb_request *request, __u64 hash)
{
	struct clb_search *search = &request->search;
	const struct clb_virtual *pool;
	__u32 index, at;
	__u64 found;

	index = clb_find_virtual(&request->asked, request->asked.port, hash);
	if (!index)
		index = clb_find_virtual(&request->asked, 0, hash);
	pool = index ? clb_lookup(clb_virtual, &index) : 0;
	if (!pool)
		return 0;
	search->pool = pool;
	search->first = 0;
	search->tier = pool->tier;
	search->home = CLB_CAN_JUDGE_LATE || !pool->eject_after ? -1 : clb_is_home(ctx);
	if (!clb_choose(request, clb_draw(search)))
		return 0;
	if (!clb_may_be_out(pool, request->server) && !clb_fails(request->server))
		return 1;
	if (CLB_CAN_JUDGE_LATE)
		search->home = clb_is_home(ctx);
	if (clb_takes_although_out(pool, request->to.server, search->home)) {
		if (!clb_has_to_stay(pool, request->server))
			return 1;
		at = clb_find_waiting(index, search->home);
		return at >= pool->servers || clb_choose(request, clb_slot_of(pool, at));
	}
	found = clb_elsewhere(index, search->by_chance, search->home, search->turns);
	search->turns = found >> 32;
	at = found;
	return at < pool->servers && clb_choose(request, clb_slot_of(pool, at));
}

#endif
