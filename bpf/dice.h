/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Random numbers. */
#ifndef CLB_DICE_H
#define CLB_DICE_H

#include "maps.h"

/* 32 random bits: PCG-XSH-RS (O'Neill 2014), with a state for each CPU, seeded by the generator of the kernel. It
 * takes a tenth of the time of that generator. */
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

/* A number below bound, for many draws in a row; the state is seeded with clb_roll. A linear congruential generator
 * (Knuth's MMIX), whose upper half is good enough. */
static __always_inline __u32 clb_next_below(__u64 *state, __u64 bound)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return ((*state >> 32) * bound) >> 32;
}

#endif
