/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the VIP that an application asked for to the slot that serves it. */
#ifndef CLB_SCHEDULE_H
#define CLB_SCHEDULE_H

#include "maps.h"

/* How often each of the exact and the wildcard port is looked up behind a known address: an element that is being
 * replaced can be missed once (see clb.h), and twice in a row would take two replacements within one look-up. */
#define CLB_TRIES 2

/* A uniform number below bound, from 32 random bits, without a division. */
static __always_inline __u32 clb_below(__u32 bound)
{
	return (__u32)(((__u64)bpf_get_prandom_u32() * bound) >> 32);
}

static __always_inline int clb_same_vip(const struct clb_vip *a, const struct clb_vip *b)
{
	return a->address[3] == b->address[3] && a->port == b->port && a->protocol == b->protocol &&
	       a->address[0] == b->address[0] && a->address[1] == b->address[1] && a->address[2] == b->address[2];
}

static __always_inline int clb_refuses(const struct clb_slot *slot)
{
	return slot->member.port == 0;
}

/* The slot with this index, provided that it belongs to the VIP. */
static __always_inline struct clb_slot *clb_slot_of(const struct clb_vip *vip, struct clb_place *place, __u32 index)
{
	struct clb_slot *slot;

	place->index = index;
	slot = clb_lookup(clb_slots, place);
	return slot && clb_same_vip(&slot->member.vip, vip) ? slot : 0;
}

/* Weighted random by alias table: one look-up, two where the alias is drawn. */
static __always_inline struct clb_slot *clb_random(const struct clb_vip *vip, struct clb_place *place, __u32 tier)
{
	struct clb_slot *slot = clb_slot_of(vip, place, clb_below(tier));

	if (slot && slot->keep < slot->out_of && clb_below(slot->out_of) >= slot->keep)
		slot = clb_slot_of(vip, place, slot->alias);
	return slot;
}

/* The slot that serves this very VIP; 0 if there is no such virtual server, or if it was replaced while being read. */
static __always_inline struct clb_slot *clb_slot_for(const struct clb_vip *vip)
{
	struct clb_virtual *published = clb_lookup(clb_virtual, vip);
	struct clb_place place = {};

	if (!published)
		return 0;
	place.generation = published->generation;
	return clb_random(vip, &place, published->tier);
}

/* The slot that serves a connect to wanted: the exact port wins over the wildcard. 0: not ours, leave it alone.
 * Where wanted is answered by a wildcard, its port is 0 afterwards. */
static __always_inline struct clb_slot *clb_schedule(struct clb_vip *wanted)
{
	struct clb_slot *slot;
	int try;

	if (!clb_lookup(clb_addresses, wanted->address))
		return 0;
#pragma unroll
	for (try = 0; try < 2 * CLB_TRIES; try++) {
		if (try == CLB_TRIES)
			wanted->port = 0;
		slot = clb_slot_for(wanted);
		if (slot)
			return slot;
	}
	return 0;
}

#endif
