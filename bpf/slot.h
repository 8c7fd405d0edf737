/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Slots, and the servers that they refer to. */
#ifndef CLB_SLOT_H
#define CLB_SLOT_H

#include "dice.h"

/* Most tiers of a pool. */
#define CLB_TIERS 16

/* Searches for a server that takes connects: another one if a connect at the same time has just started its probe. With
 * BCC 5.10 verifies only one; there this connect may be a second probe. And there a loop over the servers of a row costs
 * the verifier more, while a function's own stack is saved by it. */
#ifdef CLB_BCC
#define CLB_SEARCHES 1
#define CLB_UNROLLED _Pragma("unroll")
#define clb_end_turn(turn) ((void)(turn))
#else
#define CLB_SEARCHES 2
#define CLB_UNROLLED
#define clb_end_turn(turn) clb_opaque(turn)
#endif

#if CLB_CAN_LOOP
/* Most rows of a pool that are searched for a server that takes connects, and most rows of a tier in which ejected
 * servers are counted. */
#define CLB_LOOKS CLB_MAX_ROWS
#define CLB_COUNTED CLB_MAX_ROWS
/* After so many usable servers of a tier no more are weighed against each other, and most rows to find them in. */
#define CLB_WEIGHED 64
#define CLB_WEIGHED_ROWS CLB_MAX_ROWS

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
#define CLB_WEIGHED_ROWS (CLB_WEIGHED / CLB_ROW + 1)
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

/* The virtual server of a VIP, and its index; 0 if there is none. */
static __always_inline const struct clb_virtual *clb_virtual_of(const struct clb_vip *vip, __u32 *index)
{
	*index = clb_find_virtual(vip, vip->port, clb_hash(vip->address));
	return *index ? clb_lookup(clb_virtual, index) : 0;
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

/* The row of a random slot of a virtual server, and the index of the slot. */
static __always_inline struct clb_row *clb_random_row(const struct clb_virtual *pool, __u32 *at)
{
	*at = pool ? clb_below(pool->servers) : 0;
	return pool ? clb_row_of(pool->generation, pool->row, *at) : 0;
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

/* What the sidecar says of the server of a slot. */
static __always_inline struct clb_steering *clb_steering_of(const struct clb_slot *slot)
{
	return clb_lookup(clb_steering, &slot->server);
}

/* All ones if a pool is CLB_STEERED, else 0. */
static __always_inline __u64 clb_is_steered(const struct clb_virtual *pool)
{
	return -(__u64)(pool->flags / CLB_STEERED & 1);
}

/* All ones if the number is negative, else 0; without a branch. */
static __always_inline __u64 clb_sign(__u64 number)
{
	clb_opaque(number);
	return (__s64)number >> 63;
}

/* The sidecar writes the time of its decision last, so it has to be read first. */
static __always_inline __u64 clb_decided_at(const struct clb_steering *steering)
{
	return *(const volatile __u64 *)&steering->decided_at;
}

/* The time until which a server is out; 0: it takes connects. The later word decides, the kernel's or the sidecar's. That
 * of the sidecar counts only for servers that the kernel has put out, unless the pool is steered: then for all. There is
 * no branch, because the verifier follows each one in each slot of a row. */
static __always_inline __u64 clb_out_until(const struct clb_server *server, const struct clb_steering *steering,
					   __u64 steered)
{
	__u64 ejected = server->ejected_until, later = clb_sign(server->changed_at - clb_decided_at(steering));

	return ejected ^ ((ejected ^ steering->out_until) & later & (steered | clb_sign(-ejected)));
}

/* 1 if a server is out at this time, else 0; without a branch.
 *
 * waits is all ones if one that waits for its probe is out, too, else 0. A suspect one never waits for a connect. */
static __always_inline __u32 clb_is_out_at(__u64 now, const struct clb_server *server,
					   const struct clb_steering *steering, __u64 steered, __u64 waits)
{
	__u64 left = now & ~(waits & clb_sign(-server->ejected_until) & ((__u64)server->suspect - 1));

	left -= clb_out_until(server, steering, steered);
	clb_opaque(left);
	return left >> 63;
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

/* The slots whose server takes connects at this time. Bits of missing slots are undefined. With a branch for each slot,
 * the verifier would follow 256 paths through a row. For waits see clb_is_out_at. */
static __always_inline __u32 clb_bits_usable(const struct clb_row *row, __u64 now, __u64 steered, __u64 waits)
{
	struct clb_steering *steering;
	struct clb_server *server;
	__u32 column = 0, bits = 0;

	CLB_UNROLLED
	do {
		server = clb_server_of(&row->slot[column]);
		steering = clb_steering_of(&row->slot[column]);
		if (!server || !steering) /* never */
			return 0;
		bits |= clb_is_out_at(now, server, steering, steered, waits) << column;
		column++;
		clb_end_turn(column);
	} while (column < CLB_ROW);
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
