/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps; clb.h describes their elements. Everything that a connect reads or writes is in arrays, where a look-up is a
 * few instructions and never a call: 16 MiB of servers, 6 MiB to steer them, 8 MiB of virtual servers with their links,
 * 7 MiB of rows, 6 MiB of records. Elements of hashes are allocated on demand. */
#ifndef CLB_MAPS_H
#define CLB_MAPS_H

#include "dialect.h"

#include "clb.h"

/* The elements of an array start in the middle of a cache line; those of an array that could be mapped, on a page. */
#define CLB_IN_PAGES BPF_F_MMAPABLE

CLB_MAP(clb_filter, BPF_MAP_TYPE_ARRAY, "array", __u32, __u64, 1 << (CLB_FILTER_BITS - 6), 0);
CLB_MAP(clb_chains, BPF_MAP_TYPE_ARRAY, "array", __u32, __u32, 1 << CLB_CHAIN_BITS, BPF_F_MMAPABLE);
CLB_MAP(clb_virtual, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_virtual, CLB_VIRTUAL, BPF_F_MMAPABLE);
CLB_MAP(clb_rows, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_row, CLB_ROWS, 0);
CLB_MAP(clb_overflow, BPF_MAP_TYPE_HASH, "hash", struct clb_place, struct clb_row, CLB_MAX_ROWS, BPF_F_NO_PREALLOC);
CLB_MAP(clb_servers, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_server, CLB_MAX_SERVERS, CLB_IN_PAGES);
CLB_MAP(clb_steering, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_steering, CLB_MAX_SERVERS, CLB_IN_PAGES);
CLB_MAP(clb_labels, BPF_MAP_TYPE_HASH, "hash", struct clb_vip, struct clb_label, CLB_MAX_VIRTUAL_SERVERS,
	BPF_F_NO_PREALLOC);
CLB_MAP(clb_info, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_info, 1, 0);
CLB_MAP(clb_home, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_home, 1, 0);
CLB_MAP(clb_dice, BPF_MAP_TYPE_PERCPU_ARRAY, "percpu_array", __u32, __u64, 1, 0);
CLB_MAP(clb_listener, BPF_MAP_TYPE_ARRAY, "array", __u32, __u64, CLB_LISTENERS, 0);
CLB_MAP(clb_owners, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_bucket, CLB_BUCKETS, CLB_IN_PAGES);
CLB_MAP(clb_places, BPF_MAP_TYPE_ARRAY, "array", __u32, struct clb_socket, CLB_PLACES, 0);
CLB_SOCKET_MAP(clb_sockets, struct clb_stored);
CLB_SOCKET_MAP(clb_peers, struct clb_peers);
CLB_MAP(clb_counts, BPF_MAP_TYPE_ARRAY, "array", __u32, __u64, CLB_COUNTS, 0);
CLB_RING(clb_events, CLB_EVENTS_BYTES);
CLB_RING(clb_changes, CLB_CHANGES_BYTES);

/* What the loader sets as it makes the maps: the number of buckets; the length of a tick of the kernel (jiffy); the ticks
 * of the longest first timer of a SYN; and the first timer of a connect with TCP_SYNCNT 1 to 8, in 2^-32 ticks for each
 * millisecond of its limit, or 0 if its end is not certain. These values are for 250 ticks a second. */
#ifndef CLB_TICK_NS
#define CLB_TICK_NS 4000000
#define CLB_LONGEST 242
#define CLB_PACE_1 346729130
#define CLB_PACE_2 148598198
#define CLB_PACE_3 69345826
#define CLB_PACE_4 33554432
#define CLB_PACE_5 16510910
#define CLB_PACE_6 8190451
#define CLB_PACE_7 4079166
#define CLB_PACE_8 2035591
#endif
#ifdef CLB_BCC
#define clb_buckets CLB_BUCKETS
#define clb_tick_ns CLB_TICK_NS
#define clb_longest CLB_LONGEST
#define clb_pace(repeats) CLB_PACE_##repeats
#else
const volatile struct {
	__u32 buckets;
	__u32 tick_ns;
	__u32 longest;
	__u32 paces[8];
} clb_constants = {
	CLB_BUCKETS,
	CLB_TICK_NS,
	CLB_LONGEST,
	{ CLB_PACE_1, CLB_PACE_2, CLB_PACE_3, CLB_PACE_4, CLB_PACE_5, CLB_PACE_6, CLB_PACE_7, CLB_PACE_8 },
};
#define clb_buckets clb_constants.buckets
#define clb_tick_ns clb_constants.tick_ns
#define clb_longest clb_constants.longest
#define clb_pace(repeats) clb_constants.paces[-1 + (repeats)]
#endif

/* The time in ticks, never 0. It wraps around after 49 days or more. Ticks cost nothing to read, other clocks do. */
static __always_inline __u32 clb_ticks(void)
{
	__u32 now = bpf_jiffies64();

	return now ? now : 1;
}

#endif
