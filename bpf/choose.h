/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Find the slot that serves a connect to a VIP. */
#ifndef CLB_CHOOSE_H
#define CLB_CHOOSE_H

#include "schedule.h"

/* Draws in a tier with an ejected server, before its servers are weighed. */
#define CLB_DRAWS 3
/* Whether an address may be a VIP. If not, it certainly is none. */
static __always_inline int clb_may_be_vip(const __be32 *address)
{
	__u64 hash = ((__u64)address[0] << 32 | address[1]) * CLB_FILTER_HIGH +
		     ((__u64)address[2] << 32 | address[3]) * CLB_FILTER_LOW;
	__u32 bit = hash >> (64 - CLB_FILTER_BITS), index = bit / 64;
	__u64 *bits = clb_lookup(clb_filter, &index);

	return bits && *bits >> (bit % 64) & 1;
}

/* A walk over the rows of a pool, from its lowest tier on, to find a server that takes connects. */
struct clb_walk {
	__u64 generation;
	__u64 now;
	__u64 dice;
	__u32 servers;
	__u32 at;     /* index of a slot in the next row */
	__u32 looks;  /* rows of this tier looked at so far, if not all of it is looked at */
	__u32 usable; /* bits of the slots of this row */
	__u32 found;  /* index of the found slot */
};

#if CLB_CAN_LOOP
/* Go on after a row without a usable server. */
#define clb_go_on(walk, row) ((walk)->at += CLB_ROW)
#else
/* Go on after a row without a usable server: with the next row of the pool. In a pool with too many rows, with the
 * next row of the tier, or a random one of a large tier; after CLB_LOOKS_IN_TIER rows, with the first row of the next
 * tier. */
static __always_inline void clb_go_on(struct clb_walk *walk, const struct clb_row *row)
{
	const struct clb_slot *slot = clb_slot_at(row, walk->at);
	__u32 next = walk->at + CLB_ROW, end = slot->first + slot->tier, looks = walk->looks + 1;

	if (walk->servers > CLB_ROW * CLB_LOOKS) {
		if (slot->tier > CLB_ROW * (CLB_LOOKS_IN_TIER - 1))
			next = slot->first + clb_next_below(&walk->dice, slot->tier);
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
	struct clb_row *row;
	__u32 index;

	(void)turn;
	row = clb_row_of(walk->generation, walk->at);
	if (!row || walk->at >= walk->servers)
		return 1;
	walk->usable = clb_bits_usable(row, walk->now);
	clb_forget(walk->usable);
	if (!walk->usable) {
		clb_go_on(walk, row);
		return 0;
	}
	/* Slots are in the order of tiers; those after the last one of the pool are empty. */
	index = walk->at / CLB_ROW * CLB_ROW + clb_lowest(walk->usable);
	if (index < walk->servers)
		walk->found = index;
	return 1;
}

/* The first slot whose server can take the connect, in the lowest tier with one; CLB_NOBODY if all servers of all tiers
 * are ejected. */
CLB_GLOBAL __u32 clb_find_taker(__u64 generation, __u32 servers)
{
	struct clb_walk walk = {
		.generation = generation,
		.now = bpf_ktime_get_ns(),
		.dice = clb_roll(),
		.servers = servers,
		.found = CLB_NOBODY,
	};

	clb_for_each(servers / CLB_ROW + 1, CLB_LOOKS, clb_look, &walk);
	clb_forget(walk.found);
	return walk.found;
}

/* A choice by weight among the servers of a tier that are not ejected. */
struct clb_scale {
	__u64 generation;
	__u64 dice;
	__u32 first;
	__u32 tier;
	__u32 at;         /* a slot of the first row to look at */
	__u32 sum;        /* sum of the weights of usable servers */
	__u32 found;      /* slot of the server chosen by weight */
	__u32 zeros;      /* servers of weight 0, including ejected ones */
	__u32 zeros_left; /* usable servers of weight 0 */
	__u32 found_zero; /* slot of the server chosen among these */
	__u32 bits;       /* slots of this row that are in the tier */
	__u32 usable;     /* slots of this row that are not ejected */
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
	__u32 at = scale->at + turn * CLB_ROW, column;
	struct clb_row *row = clb_row_of(scale->generation, at);

	if (!row)
		return 1;
	scale->bits = clb_bits_between(at, scale->first, scale->first + scale->tier);
	scale->usable = clb_bits_usable(row, 0);
	clb_forget(scale->bits); /* otherwise the verifier follows each possible value */
	clb_forget(scale->usable);
	for (column = 0; column < CLB_ROW; column++) {
		clb_opaque(column);
		if (scale->bits >> column & 1)
			clb_weigh_slot(scale, clb_slot_at(row, column)->weight, scale->usable >> column & 1,
				       at / CLB_ROW * CLB_ROW + column);
	}
	return 0;
}

/* Choose by weight among the servers of a tier that are not ejected; in a tier of more than CLB_WEIGHED servers, among
 * that many consecutive ones. All servers of weight 0 together have the share of one server of weight 1 (RFC 2782).
 * CLB_NOBODY: all of these are ejected. */
CLB_GLOBAL __u32 clb_weigh(__u64 generation, __u32 first, __u32 tier)
{
	struct clb_scale scale = { .generation = generation, .first = first, .tier = tier, .dice = clb_roll() };
	__u32 whole;

	scale.at = first + clb_below(tier > CLB_WEIGHED ? tier - CLB_WEIGHED : 0);
	clb_for_each(CLB_WEIGHED / CLB_ROW + 1, CLB_WEIGHED / CLB_ROW + 1, clb_weigh_row, &scale);
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
	struct clb_server *turns = clb_lookup(clb_servers, &search->refusal);

	if (turns)
		__sync_fetch_and_add(&turns->failures, -(__u64)search->turns);
	search->turns = 0;
}

/* The drawn server is ejected: schedule in the tier in use, which is the lowest one with a server that takes connects.
 * Drawing again keeps the shares of the other servers. */
CLB_FUNCTION struct clb_slot *clb_elsewhere(struct clb_search *search)
{
	__u32 found = clb_find_taker(search->generation, search->servers);
	struct clb_slot *taker = clb_slot_of(&search->vip, search->generation, found), *slot;
	struct clb_server *server = taker ? clb_server_of(taker) : 0;
	int draw;

	if (server && !clb_takes(server, search->eject_first_ms)) { /* another connect has just started its probe */
		found = clb_find_taker(search->generation, search->servers);
		taker = clb_slot_of(&search->vip, search->generation, found);
		server = taker ? clb_server_of(taker) : 0;
	}
	if (!taker) /* all are ejected: an attempt is better than a refusal */
		return clb_random(search);
	if (server && server->ejected_until) /* this connect is its probe */
		return taker;
	if (taker->first != search->first) {
		search->first = taker->first;
		search->tier = taker->tier;
		clb_give_back_turns(search);
	}
	for (draw = 0; draw < CLB_DRAWS; draw++) {
		/* After the first draw of the scheduler, draw by weight alone, which is less to verify. */
		slot = draw ? clb_random(search) : clb_draw(search);
		if (slot && clb_takes(clb_server_of(slot), search->eject_first_ms))
			return slot;
	}
	found = clb_weigh(search->generation, search->first, search->tier);
	slot = clb_slot_of(&search->vip, search->generation, found);
	return slot ? slot : taker;
}

/* Draw a slot of exactly this VIP; 0 if there is no such virtual server, or if it was replaced meanwhile. */
static __always_inline struct clb_slot *clb_draw_from(struct clb_search *search)
{
	struct clb_virtual *published = clb_lookup(clb_virtual, &search->vip);

	if (!published)
		return 0;
	search->generation = published->generation;
	search->servers = published->servers;
	search->algorithm = search->by_chance ? CLB_RANDOM : published->algorithm;
	search->flags = published->flags;
	search->eject_after = published->eject_after;
	search->eject_first_ms = published->eject_first_ms;
	search->refusal = published->refusal;
	search->first = 0;
	search->tier = published->tier;
	return clb_draw(search);
}

/* The slot that serves a connect to search->vip; the exact port wins over the wildcard. 0: it is not a VIP.
 * If the wildcard serves it, the port of search->vip is 0 afterwards. */
static __always_inline struct clb_slot *clb_schedule(struct clb_search *search)
{
	struct clb_slot *slot = 0;
	int attempt;

	if (!clb_may_be_vip(search->vip.address))
		return 0;
	for (attempt = 0; attempt < 2 * CLB_TRIES && !slot; attempt++) {
		if (attempt == CLB_TRIES)
			search->vip.port = 0;
		slot = clb_draw_from(search);
	}
	if (!slot)
		return 0;
	search->server = clb_server_of(slot);
	/* If ejection is off, the outcome of a probe would not be recorded. */
	if (!search->eject_after || clb_takes(search->server, search->eject_first_ms))
		return slot;
	slot = clb_elsewhere(search);
	search->server = slot ? clb_server_of(slot) : 0;
	return slot;
}

#endif
