/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The schedulers: choose the slot of a tier for a connect, by weight, turn or load. */
#ifndef CLB_SCHEDULE_H
#define CLB_SCHEDULE_H

#include "health.h"

/* The load of an ejected server: above any real load, and within 64 bits when multiplied by any weight. */
#define CLB_OVERLOADED (1ULL << 39)

/* CLB_LEAST_CONN compares all servers of a tier of at most this size, which is in at most two rows. */
#define CLB_FEW CLB_ROW

/* A search for a slot of a virtual server. */
struct clb_search {
	const struct clb_virtual *pool;
	__u32 by_chance; /* 1: weighted random whatever the scheduler, see clb_connect */
	__u32 first;     /* the present tier: its first slot and its size */
	__u32 tier;
	__u32 turns; /* turns taken for this connect */
	__u32 at;    /* index of the drawn slot */
	__s32 home;  /* -1: it is from home; 0: it is foreign, so it must not probe, and its outcome does not count */
};

/* The alias of a slot; in most pools it is in the same row, which saves a lookup. */
static __always_inline struct clb_slot *clb_alias_of(struct clb_search *search, __u32 from, struct clb_row *row,
						     __u32 column, const struct clb_slot *slot)
{
	__u32 alias = slot->alias;

	search->at = alias;
	if (alias / CLB_ROW != column / CLB_ROW)
		row = clb_row_of(search->pool->generation, from, alias);
	return row ? clb_slot_at(row, alias) : 0;
}

/* The own server of a column or its alias, by a draw: 32 random bits times the size of the tier. The upper part of the
 * draw chooses the column, the rest chooses between the two; in a tier of 65,536 servers the rest still has 16 bits. */
CLB_HOT struct clb_slot *clb_drawn(struct clb_search *search, __u64 draw)
{
	__u32 column = search->first + (__u32)(draw >> 32), from = search->pool->row;
	struct clb_row *row = clb_row_of(search->pool->generation, from, column);
	struct clb_slot *slot;

	search->at = column;
	if (!row)
		return 0;
	slot = clb_slot_at(row, column);
	if (slot->keep >= slot->out_of)
		return slot;
	if ((((__u64)(__u32)draw * slot->out_of) >> 32) >= slot->keep)
		slot = clb_alias_of(search, from, row, column, slot);
	return slot;
}

/* Weighted random. */
static __always_inline struct clb_slot *clb_random(struct clb_search *search)
{
	__u64 draw = (__u64)clb_roll() * search->tier;

	return clb_drawn(search, draw);
}

/* Take a turn. Returns the number of turns taken before. */
static __always_inline __u32 clb_take_turn(struct clb_server *turns)
{
#if CLB_CAN_EXCHANGE
	return __sync_fetch_and_add(&turns->failures, 1);
#else
	__u32 taken;

	bpf_spin_lock(&turns->lock);
	taken = turns->failures++;
	bpf_spin_unlock(&turns->lock);
	return taken;
#endif
}

/* The columns in turn. In out_of rounds, a column chooses its own server keep times, evenly spread (Bresenham's line).
 * So in out_of * tier connects the shares are exactly those of the weights. */
CLB_FUNCTION struct clb_slot *clb_round_robin(struct clb_search *search)
{
	const struct clb_virtual *pool = search->pool;
	struct clb_server *turns = clb_lookup(clb_servers, &pool->refusal);
	struct clb_slot *slot;
	struct clb_row *row;
	__u32 from = pool->row, column;
	__u32 now;
	__u64 round;

	if (!turns || !search->tier)
		return 0;
	now = clb_take_turn(turns);
	__sync_fetch_and_add(&search->turns, 1);
	column = now % search->tier;
	round = now / search->tier + column;
	column += search->first;
	search->at = column;
	row = clb_row_of(pool->generation, from, column);
	if (!row)
		return 0;
	slot = clb_slot_at(row, column);
	if (slot->out_of && (round * slot->keep) % slot->out_of >= slot->keep)
		slot = clb_alias_of(search, from, row, column, slot);
	return slot;
}

/* Active connections of the server of a slot; CLB_OVERLOADED while it is ejected. */
static __always_inline __u64 clb_load(const struct clb_slot *slot, __u64 steered)
{
	struct clb_server *server = clb_server_of(slot);

	if (!server)
		return 0;
	return clb_is_out(server, &slot->server, steered, 0) ? CLB_OVERLOADED : server->active;
}

/* A weight to compare loads with; 0 counts as a very small one (RFC 2782). */
static __always_inline __u64 clb_weight(const struct clb_slot *slot)
{
	return slot->weight ? slot->weight * 256 : 1;
}

/* Whether a has at most as many active connections per weight as b. */
static __always_inline int clb_is_less_loaded(const struct clb_slot *a, const struct clb_slot *b, __u64 steered)
{
	return clb_load(a, steered) * clb_weight(b) <= clb_load(b, steered) * clb_weight(a);
}

/* A server of weight 0 beside servers with a weight is compared only if it was drawn. Otherwise an idle one would have
 * the least load whenever the others are busy, but its share has to be very small. */
static __always_inline int clb_is_spared(const struct clb_slot *slot)
{
	return !slot->weight && slot->keep < slot->out_of;
}

/* The best slot so far in a small tier. */
struct clb_least {
	__u64 load;
	__u64 weight;
	__u64 dice;
	__u64 sum;   /* sum of weights of equal slots; 0: the drawn slot is among them and wins */
	__u32 index; /* of its slot */
};

/* The slot with this index in one of the two rows of a small tier. */
static __always_inline struct clb_slot *clb_slot_of_few(__u32 first, struct clb_row *row, struct clb_row *next,
							__u32 index)
{
	return clb_slot_at(index / CLB_ROW == first / CLB_ROW ? row : next, index);
}

/* Compare a slot with the best so far.
 *
 * nothing is 0 with a value unknown to the verifier, which would otherwise follow each possible load and sum. */
static __always_inline void clb_compare(struct clb_least *best, const struct clb_slot *slot, __u32 index, __u64 nothing,
					__u64 steered)
{
	__u64 load = clb_load(slot, steered) + nothing, weight = clb_weight(slot);

	if (load * best->weight > best->load * weight)
		return;
	if (load * best->weight == best->load * weight) {
		if (!best->sum)
			return;
		best->sum += weight + nothing;
		if (clb_next_below(&best->dice, best->sum) >= weight)
			return;
	} else {
		best->sum = weight + nothing;
	}
	best->load = load;
	best->weight = weight;
	best->index = index;
}

/* The slot with the fewest active connections per weight in a small tier. Of several equal slots, the one drawn by
 * weight wins, else a random one by weight. If all are idle, the draw alone decides. */
CLB_GLOBAL __u32 clb_least_of_few(__u64 generation, __u32 from, __u32 first, __u32 tier, __u64 steered)
{
	__u64 draw = (__u64)clb_roll() * tier, nothing = clb_nothing();
	__u32 last = first + tier - 1, drawn, index, turn;
	struct clb_row *row, *next;
	struct clb_least best;
	struct clb_slot *slot;

	row = clb_row_of(generation, from, first);
	next = last / CLB_ROW == first / CLB_ROW ? row : clb_row_of(generation, from, last);
	if (!row || !next)
		return CLB_NOBODY;
	drawn = first + (__u32)(draw >> 32);
	slot = clb_slot_of_few(first, row, next, drawn);
	if ((((__u64)(__u32)draw * slot->out_of) >> 32) >= slot->keep) {
		drawn = slot->alias;
		slot = clb_slot_of_few(first, row, next, drawn);
	}
	best.index = drawn;
	best.load = clb_load(slot, steered) + nothing;
	if (!best.load) /* no other has fewer, and of equal ones the drawn one wins */
		return drawn;
	best.weight = clb_weight(slot);
	best.dice = draw;
	best.sum = nothing;
	for (turn = 0; turn < CLB_FEW; turn++) {
		clb_opaque(turn);
		index = first + turn + (__u32)nothing;
		if (index > last)
			break;
		slot = clb_slot_of_few(first, row, next, index);
		if (index != drawn && slot->out_of && !clb_is_spared(slot))
			clb_compare(&best, slot, index, nothing, steered);
	}
	clb_forget(best.index); /* otherwise the verifier follows each possible value */
	return best.index;
}

/* A slot of another server in the tier, uniformly chosen. */
static __always_inline struct clb_slot *clb_another(struct clb_search *search, const struct clb_slot *than)
{
	__u32 others = search->tier - 1, index = search->first + clb_below(others);
	struct clb_slot *slot = clb_slot_of(search->pool, index);

	if (slot && slot->server == than->server) {
		index = search->first + others;
		slot = clb_slot_of(search->pool, index);
	}
	search->at = index;
	return slot;
}

/* The power of two choices (Mitzenmacher 2001): two different servers, drawn by weight. Of two equal ones the first
 * wins, so that its draw alone decides if all are idle. */
CLB_FUNCTION struct clb_slot *clb_least_of_two(struct clb_search *search)
{
	struct clb_slot *a = clb_random(search), *b;
	__u32 at = search->at;

	b = a ? clb_random(search) : 0;
	if (b && a->server == b->server) {
		b = clb_another(search, a);
		if (b && clb_is_spared(b))
			b = 0;
	}
	if (b && !clb_is_less_loaded(a, b, clb_is_steered(search->pool)))
		return b;
	search->at = at;
	return a;
}

static __always_inline struct clb_slot *clb_least_conn(struct clb_search *search)
{
	const struct clb_virtual *pool = search->pool;
	__u32 best;

	if (search->tier > CLB_FEW)
		return clb_least_of_two(search);
	best = clb_least_of_few(pool->generation, pool->row, search->first, search->tier, clb_is_steered(pool));
	search->at = best;
	return best < pool->servers ? clb_slot_of(pool, best) : 0;
}

static __always_inline struct clb_slot *clb_draw(struct clb_search *search)
{
	if (search->by_chance || search->pool->algorithm == CLB_RANDOM)
		return clb_random(search);
	if (search->pool->algorithm == CLB_ROUND_ROBIN)
		return clb_round_robin(search);
	if (search->pool->algorithm == CLB_LEAST_CONN)
		return clb_least_conn(search);
	return clb_random(search);
}

#endif
