/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Slots, and the servers that they refer to. */
#ifndef CLB_SLOT_H
#define CLB_SLOT_H

#include "dice.h"

/* Most tiers of a pool. */
#define CLB_TIERS 16

#if CLB_CAN_LOOP
/* Most rows of a pool that are searched for a server that takes connects, and most rows of a tier in which ejected
 * servers are counted. */
#define CLB_LOOKS CLB_MAX_ROWS
#define CLB_COUNTED CLB_MAX_ROWS
/* Most servers of a tier that are weighed against each other. */
#define CLB_WEIGHED 64

/* Call a function with each number below count, at most `most` times, and with walk, until it returns 1. */
#define clb_for_each(count, most, function, walk) bpf_loop(count, function, walk, 0)
#else
/* Without bpf_loop (5.17) the verifier checks every turn, and with BCC, which has no functions, every path to it. In a
 * pool with more rows than CLB_LOOKS, at most CLB_LOOKS_IN_TIER rows of each tier are searched, random ones if the tier
 * has more; in the last tier, all remaining looks are used. */
#ifdef CLB_BCC
#define CLB_LOOKS_IN_TIER 2
#define CLB_COUNTED 16
#define CLB_WEIGHED 16
#else
#define CLB_LOOKS_IN_TIER 6
#define CLB_COUNTED 64
#define CLB_WEIGHED 32
#endif
#define CLB_LOOKS (CLB_TIERS * CLB_LOOKS_IN_TIER + 16)

#define clb_for_each(count, most, function, walk)                                                                      \
	for (__u32 clb_turn = 0; clb_turn < (most); clb_turn++) {                                                      \
		clb_opaque(clb_turn);                                                                                  \
		if (clb_turn >= (count) || function(clb_turn, walk))                                                   \
			break;                                                                                         \
	}
#endif

/* The hash of an address, for the filter and the chains. */
static __always_inline __u64 clb_hash(const __be32 *address)
{
	return ((__u64)address[0] << 32 | address[1]) * CLB_FILTER_HIGH +
	       ((__u64)address[2] << 32 | address[3]) * CLB_FILTER_LOW;
}

/* The index of the virtual server of this address, port (0: the wildcard) and protocol; 0 if there is none.
 *
 * hash is that of the address. */
CLB_HOT __u32 clb_find_virtual(const struct clb_vip *vip, __be16 port, __u64 hash)
{
	__u32 index = (hash + ((__u64)port << 8 | vip->protocol) * CLB_FILTER_HIGH) >> (64 - CLB_CHAIN_BITS), turn;
	__u32 *link = clb_lookup(clb_chains, &index);
	struct clb_virtual *found;

	if (!link)
		return 0;
	index = *link;
	for (turn = 0; turn < CLB_CHAIN && index; turn++) {
		clb_opaque(turn);
		found = clb_lookup(clb_virtual, &index);
		if (!found)
			return 0;
		/* Without a branch for each word, because the verifier follows every branch. */
		if (!((found->vip.address[0] ^ vip->address[0]) | (found->vip.address[1] ^ vip->address[1]) |
		      (found->vip.address[2] ^ vip->address[2]) | (found->vip.address[3] ^ vip->address[3]) |
		      (__u32)(found->vip.port ^ port) | (__u32)(found->vip.protocol ^ vip->protocol)))
			return index;
		index = found->next;
	}
	return 0;
}

/* The slot with this index in its row. */
static __always_inline struct clb_slot *clb_slot_at(const struct clb_row *row, __u32 index)
{
	clb_opaque(index); /* otherwise the column is computed early, and 5.10 forgets the bounds of a spilled value */
	return (struct clb_slot *)&row->slot[index % CLB_ROW];
}

/* A row of a generation that did not fit into clb_rows. */
CLB_FUNCTION struct clb_row *clb_overflowing_row(__u64 generation, __u32 row)
{
	struct clb_place place = { .generation = generation, .row = row };

	return clb_lookup(clb_overflow, &place);
}

/* The row of the slot with this index.
 *
 * from is clb_virtual.row of the generation. */
static __always_inline struct clb_row *clb_row_of(__u64 generation, __u32 from, __u32 index)
{
	__u32 at = from + index / CLB_ROW;

	if (from == CLB_OVERFLOWS)
		return clb_overflowing_row(generation, index / CLB_ROW);
	return clb_lookup(clb_rows, &at);
}

/* The same in a walk over rows. Without bpf_loop, rows in clb_overflow cannot be walked over: the verifier would follow
 * both maps in each turn. */
static __always_inline struct clb_row *clb_next_row(__u64 generation, __u32 from, __u32 index)
{
#if CLB_CAN_LOOP
	return clb_row_of(generation, from, index);
#else
	__u32 at = from + index / CLB_ROW;

	(void)generation;
	return from == CLB_OVERFLOWS ? 0 : clb_lookup(clb_rows, &at);
#endif
}

/* The slot with this index. */
static __always_inline struct clb_slot *clb_slot_of(const struct clb_virtual *pool, __u32 index)
{
	struct clb_row *row = clb_row_of(pool->generation, pool->row, index);

	return row ? clb_slot_at(row, index) : 0;
}

#define CLB_NOBODY 0xffffffff /* no slot has this index */

/* The counters and health of the server of a slot. */
static __always_inline struct clb_server *clb_server_of(const struct clb_slot *slot)
{
	return clb_lookup(clb_servers, &slot->server);
}

/* Eight bits stand for the slots of a row, the lowest for the first. These are the slots from one index to before
 * another. */
static __always_inline __u32 clb_bits_between(__u32 index, __u32 from, __u32 to)
{
	__u32 row = index / CLB_ROW * CLB_ROW, bits = 0xff;

	if (from > row)
		bits = 0xff << (from - row) % CLB_ROW & 0xff;
	if (to < row + CLB_ROW)
		bits &= to > row ? 0xff >> (row - to) % CLB_ROW : 0;
	return bits;
}

/* The slots whose server takes connects at this time; with 0, those that are not ejected. Bits of missing slots are
 * undefined. With a branch for each slot, the verifier would follow 256 paths through a row. */
static __always_inline __u32 clb_bits_usable(const struct clb_row *row, __u64 now)
{
	struct clb_server *server;
	__u32 column, bits = 0;
	__u64 left;

#pragma unroll
	for (column = 0; column < CLB_ROW; column++) {
		server = clb_server_of(&row->slot[column]);
		if (!server) /* never */
			return 0;
		left = now - server->ejected_until;
		clb_opaque(left);
		bits |= (__u32)(left >> 63) << column;
	}
	return ~bits & 0xff;
}

/* The number of bits that are set. */
static __always_inline __u32 clb_how_many(__u32 bits)
{
	bits = (bits & 0x55) + (bits >> 1 & 0x55);
	bits = (bits & 0x33) + (bits >> 2 & 0x33);
	return (bits & 0xf) + (bits >> 4);
}

/* The position of the lowest bit that is set. */
static __always_inline __u32 clb_lowest(__u32 bits)
{
	return clb_how_many((bits & -bits) - 1);
}

#endif
