/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the VIP that an application asked for to the slot that serves it. */
#ifndef CLB_SCHEDULE_H
#define CLB_SCHEDULE_H

#include "health.h"

/* How often each of the exact and the wildcard port is looked up behind the filter: an element that is being
 * replaced can be missed once (see clb.h), and twice in a row would take two replacements within one look-up. */
#define CLB_TRIES 2
/* The load of a server that is kept away: above any real one, and within 64 bits times any weight. */
#define CLB_OVERLOADED (1ULL << 39)

/* Draws in a tier before it is looked through. */
#define CLB_DRAWS 4

/* A look-up on its way: the VIP that slots have to name, and its virtual server as it was read once. */
struct clb_search {
	struct clb_vip vip;
	__u16 algorithm;
	__u16 flags;
	__u64 generation;
	__u32 servers;
	__u32 first; /* the tier in question: its first slot and its size */
	__u32 tier;
	__u32 eject_after;
	__u32 eject_first_ms;
	__u32 refusal; /* index of the server that knows whose turn it is, for CLB_ROUND_ROBIN */
	__u32 turns;   /* taken for this connect */
	__be16 asked; /* the port that the application asked for */
	__u64 cookie; /* of its socket */
	struct clb_server *server; /* of the slot that was chosen */
};

/* Whether an address may be a VIP; where not, it is none. */
static __always_inline int clb_may_be_vip(const __be32 *address)
{
	__u64 hash = ((__u64)address[0] << 32 | address[1]) * CLB_FILTER_HIGH +
		     ((__u64)address[2] << 32 | address[3]) * CLB_FILTER_LOW;
	__u32 bit = hash >> (64 - CLB_FILTER_BITS), index = bit / 64;
	__u64 *bits = clb_lookup(clb_filter, &index);

	return bits && *bits >> (bit % 64) & 1;
}

/* 32 random bits: PCG-XSH-RS (O'Neill 2014), a state for each CPU, which the kernel's generator starts. At a tenth of what
 * that one costs a connect. */
static __always_inline __u32 clb_roll(void)
{
	__u32 zero = 0;
	__u64 *dice = clb_lookup(clb_dice, &zero), state;

	if (!dice)
		return 0;
	state = *dice;
	if (!state)
		state = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
	*dice = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (__u32)((state ^ state >> 22) >> (22 + (state >> 61)));
}

/* A uniform number below bound, from 32 random bits, without a division. */
static __always_inline __u32 clb_below(__u32 bound)
{
	return (__u32)(((__u64)clb_roll() * bound) >> 32);
}

/* The alias of a slot; in most pools it is in the same row, which saves a look-up. */
static __always_inline struct clb_slot *clb_alias_of(const struct clb_search *search, struct clb_row *row,
						     __u32 column, const struct clb_slot *slot)
{
	__u32 alias = slot->alias;

	if (alias / CLB_ROW != column / CLB_ROW)
		row = clb_row_of(search->generation, alias);
	return clb_slot_in(row, &search->vip, alias);
}

/* The column's own server or its alias, by a number of 32 bits: weighted random where that is random. The part of the draw
 * that has not chosen the column chooses between the two; in a tier of 65,536 that is still 16 bits. */
CLB_FUNCTION struct clb_slot *clb_slot_by(struct clb_search *search, __u32 number)
{
	__u64 draw = (__u64)number * search->tier;
	__u32 column = search->first + (__u32)(draw >> 32);
	struct clb_row *row = clb_row_of(search->generation, column);
	struct clb_slot *slot = clb_slot_in(row, &search->vip, column);

	if (!slot || slot->keep >= slot->out_of)
		return slot;
	if ((((__u64)(__u32)draw * slot->out_of) >> 32) >= slot->keep)
		slot = clb_alias_of(search, row, column, slot);
	return slot;
}

static __always_inline struct clb_slot *clb_random(struct clb_search *search)
{
	return clb_slot_by(search, clb_roll());
}

/* Take a turn. Returns how many were taken before. */
static __always_inline __u64 clb_take_turn(struct clb_server *turns)
{
#if CLB_CAN_EXCHANGE
	return __sync_fetch_and_add(&turns->failures, 1);
#else
	__u64 taken;

	bpf_spin_lock(&turns->lock);
	taken = turns->failures++;
	bpf_spin_unlock(&turns->lock);
	return taken;
#endif
}

/* The columns in turn. In out_of rounds a column keeps its own server keep times, evenly spread (Bresenham's line), so
 * that out_of times tier connects follow the weights exactly. */
CLB_FUNCTION struct clb_slot *clb_round_robin(struct clb_search *search)
{
	struct clb_server *turns = clb_lookup(clb_servers, &search->refusal);
	struct clb_slot *slot;
	struct clb_row *row;
	__u64 now, round;
	__u32 column;

	if (!turns || !search->tier)
		return 0;
	now = clb_take_turn(turns);
	__sync_fetch_and_add(&search->turns, 1);
	column = now % search->tier;
	round = now / search->tier + column;
	column += search->first;
	row = clb_row_of(search->generation, column);
	slot = clb_slot_in(row, &search->vip, column);
	if (slot && slot->out_of && (round * slot->keep) % slot->out_of >= slot->keep)
		slot = clb_alias_of(search, row, column, slot);
	return slot;
}

/* Active connections of a slot's server, which are beyond compare while it is kept away. */
static __always_inline __u64 clb_load(const struct clb_slot *slot)
{
	struct clb_server *server = clb_server_of(slot);

	if (!server)
		return 0;
	return clb_is_out(server) ? CLB_OVERLOADED : server->active;
}

/* Active connections per weight of a are at most b's. Of two that are equal the first drawn wins, so that where all are
 * idle the draw alone decides, which follows the weights. */
static __always_inline int clb_is_less_loaded(const struct clb_slot *a, const struct clb_slot *b)
{
	/* A weight of 0 is a very small one (RFC 2782). */
	return clb_load(a) * (b->weight ? b->weight * 256 : 1) <= clb_load(b) * (a->weight ? a->weight * 256 : 1);
}

/* The power of two choices (Mitzenmacher 2001), drawn by weight. */
static __always_inline struct clb_slot *clb_least_conn(struct clb_search *search)
{
	struct clb_slot *a = clb_random(search), *b = clb_random(search);

	if (!a || !b)
		return a;
	return clb_is_less_loaded(a, b) ? a : b;
}

static __always_inline struct clb_slot *clb_draw(struct clb_search *search)
{
	if (search->algorithm == CLB_ROUND_ROBIN)
		return clb_round_robin(search);
	if (search->algorithm == CLB_LEAST_CONN)
		return clb_least_conn(search);
	return clb_random(search);
}

/* A walk over a tier, from a random slot on, for one that takes connects. */
struct clb_walk {
	struct clb_search *search;
	__u32 start;
	__u32 found; /* its index */
};

static long clb_find_taker(__u32 index, struct clb_walk *walk)
{
	struct clb_search *search = walk->search;
	struct clb_slot *slot;

	if (!search->tier)
		return 1;
	index = search->first + (walk->start + index) % search->tier;
	slot = clb_slot_of(&search->vip, search->generation, index);
	if (!slot || !clb_takes(clb_server_of(slot), search->eject_first_ms))
		return 0;
	walk->found = index;
	return 1;
}

#define CLB_NOBODY 0xffffffff

/* The server of a tier that takes the connect: drawing again keeps the shares of the rest, looking through the tier finds
 * the last one. */
static __always_inline struct clb_slot *clb_from_tier(struct clb_search *search)
{
	struct clb_walk walk = { .search = search, .start = clb_below(search->tier), .found = CLB_NOBODY };
	struct clb_slot *slot;
	int draw;

	clb_forget(walk.start);
	for (draw = 0; draw < CLB_DRAWS; draw++) {
		/* After the scheduler's own draw by weight alone, which is less to verify. */
		slot = draw ? clb_random(search) : clb_draw(search);
		if (slot && clb_takes(clb_server_of(slot), search->eject_first_ms))
			return slot;
	}
	clb_for_each(search->tier, CLB_SOUGHT, clb_find_taker, &walk);
	return walk.found == CLB_NOBODY ? 0 : clb_slot_of(&search->vip, search->generation, walk.found);
}

/* Give back the turns that found nobody in a tier: a connect takes one in the tier that serves it, or it would always meet
 * the same servers there. */
static __always_inline void clb_give_back_turns(struct clb_search *search)
{
	struct clb_server *turns = clb_lookup(clb_servers, &search->refusal);

	if (turns)
		__sync_fetch_and_add(&turns->failures, -(__u64)search->turns);
	search->turns = 0;
}

/* The server that was drawn is ejected: look for another, in its tier, then in the next ones. */
CLB_FUNCTION struct clb_slot *clb_elsewhere(struct clb_search *search)
{
	struct clb_slot *slot;
	__u32 lowest;
	int tier;

	clb_forget(search->tier); /* or the verifier follows each value that an index is made of */
	lowest = search->tier;
	for (tier = 0; tier < CLB_TIERS; tier++) {
		slot = clb_from_tier(search);
		if (slot)
			return slot;
		if (search->first + search->tier >= search->servers)
			break;
		slot = clb_slot_of(&search->vip, search->generation, search->first + search->tier);
		if (!slot)
			break;
		search->first = slot->first;
		search->tier = slot->tier;
		clb_forget(search->tier);
		clb_give_back_turns(search);
	}
	/* Nobody is left: better to try than to refuse. */
	search->first = 0;
	search->tier = lowest;
	return clb_random(search);
}

/* Draw a slot of this very VIP; 0 if there is no such virtual server, or if it was replaced while being read. */
static __always_inline struct clb_slot *clb_draw_from(struct clb_search *search)
{
	struct clb_virtual *published = clb_lookup(clb_virtual, &search->vip);

	if (!published)
		return 0;
	search->generation = published->generation;
	search->servers = published->servers;
	search->algorithm = published->algorithm;
	search->flags = published->flags;
	search->eject_after = published->eject_after;
	search->eject_first_ms = published->eject_first_ms;
	search->refusal = published->refusal;
	search->first = 0;
	search->tier = published->tier;
	return clb_draw(search);
}

/* The slot that serves a connect to search->vip: the exact port wins over the wildcard. 0: not ours, leave it alone.
 * Where the wildcard answers, the port of search->vip is 0 afterwards. */
static __always_inline struct clb_slot *clb_schedule(struct clb_search *search)
{
	struct clb_slot *slot = 0;
	int try;

	if (!clb_may_be_vip(search->vip.address))
		return 0;
	for (try = 0; try < 2 * CLB_TRIES && !slot; try++) {
		if (try == CLB_TRIES)
			search->vip.port = 0;
		slot = clb_draw_from(search);
	}
	if (!slot)
		return 0;
	search->server = clb_server_of(slot);
	/* Where ejection has been switched off nobody would learn what became of a probe. */
	if (!search->eject_after || clb_takes(search->server, search->eject_first_ms))
		return slot;
	slot = clb_elsewhere(search);
	search->server = slot ? clb_server_of(slot) : 0;
	return slot;
}

#endif
