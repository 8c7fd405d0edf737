/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The two dialects that these sources are compiled in: libbpf's (clang, at build time) and BCC's (on the host, CLB_BCC).
 * They differ in how a map is declared and looked up, how a program is named, and how the loader passes a constant.
 */
#ifndef CLB_DIALECT_H
#define CLB_DIALECT_H

#ifdef CLB_BCC

#define CLB_MAP(name, libbpf_type, bcc_type, key_type, value_type, entries, flags)                                     \
	BPF_F_TABLE(bcc_type, key_type, value_type, name, entries, flags)
#define clb_lookup(map, key) map.lookup(key)
#define CLB_PROGRAM(section)
/* The loader defines CLB_CAN_SET_ERRNO as 0 or 1. */

#else

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define CLB_MAP(name, libbpf_type, bcc_type, key_type, value_type, entries, flags)                                     \
	struct {                                                                                                       \
		__uint(type, libbpf_type);                                                                             \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
		__uint(max_entries, entries);                                                                          \
		__uint(map_flags, flags);                                                                              \
	} name SEC(".maps")
#define clb_lookup(map, key) bpf_map_lookup_elem(&map, key)
#define CLB_PROGRAM(section) SEC(section)

#endif
#endif
