/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Slots, and the servers that they stand for. */
#ifndef CLB_SLOT_H
#define CLB_SLOT_H

#include "maps.h"

/* How many tiers are tried. */
#define CLB_TIERS 4

#if CLB_CAN_LOOP
/* How many slots of a tier are looked at where all of them would have to be: to find one that takes connects, and to
 * count those that are ejected. */
#define CLB_SOUGHT (CLB_MAX_ROWS * CLB_ROW)
#define CLB_COUNTED CLB_SOUGHT

/* Call a function of struct walk's kind for each of these slots, at most so many, until it returns 1. */
#define clb_for_each(count, most, function, walk) bpf_loop(count, function, walk, 0)
#else
/* Before bpf_loop (5.17) every turn is verified on its own; 5.10 gives up when 16 are sought. */
#define CLB_SOUGHT 8
#define CLB_COUNTED 16

#define clb_for_each(count, most, function, walk)                                                                      \
	for (__u32 clb_turn = 0; clb_turn < (most); clb_turn++) {                                                      \
		clb_opaque(clb_turn);                                                                                  \
		if (clb_turn >= (count) || function(clb_turn, walk))                                                   \
			break;                                                                                         \
	}
#endif

/* Without a branch for each word: the verifier follows every one. */
static __always_inline int clb_same_vip(const struct clb_vip *a, const struct clb_vip *b)
{
	return !((a->address[0] ^ b->address[0]) | (a->address[1] ^ b->address[1]) | (a->address[2] ^ b->address[2]) |
		 (a->address[3] ^ b->address[3]) | (__u32)(a->port ^ b->port) | (__u32)(a->protocol ^ b->protocol));
}

static __always_inline int clb_refuses(const struct clb_slot *slot)
{
	return slot->member.port == 0;
}

/* The slot with this index in its row, provided that it belongs to the VIP. */
static __always_inline struct clb_slot *clb_slot_in(struct clb_row *row, const struct clb_vip *vip, __u32 index)
{
	struct clb_slot *slot;

	if (!row)
		return 0;
	slot = &row->slot[index % CLB_ROW];
	return clb_same_vip(&slot->member.vip, vip) ? slot : 0;
}

/* The row of the slot with this index. */
static __always_inline struct clb_row *clb_row_of(__u64 generation, __u32 index)
{
	struct clb_place place = { .generation = generation, .row = index / CLB_ROW };

	return clb_lookup(clb_rows, &place);
}

/* The slot with this index, provided that it belongs to the VIP. */
static __always_inline struct clb_slot *clb_slot_of(const struct clb_vip *vip, __u64 generation, __u32 index)
{
	return clb_slot_in(clb_row_of(generation, index), vip, index);
}

/* What became of connects to the slot's server. */
static __always_inline struct clb_server *clb_server_of(const struct clb_slot *slot)
{
	return clb_lookup(clb_servers, &slot->server);
}

#endif
