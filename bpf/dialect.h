/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * These sources are compiled in two dialects: for libbpf (clang, when the package is built) and for BCC (on the host,
 * CLB_BCC). The dialects differ in how maps are declared and used, how programs are named, and how the loader passes a
 * constant.
 *
 * BCC accepts only a part of C, and its optimizer must leave code that the verifier can prove. The rules:
 *
 *  - Name the map in the call, clb_lookup(clb_rows, key), never through a variable. BCC knows map functions only as
 *    map.lookup(key), and not inside macros. So our BCC loader expands the macros below whose body starts with "map."
 *    before the compiler sees them; such a call must not be in the body of another macro.
 *  - Call helpers without a map (bpf_spin_lock, bpf_set_retval, bpf_ringbuf_discard) directly.
 *  - There are no function calls: static functions are inlined, and every other function is a program. So a program and
 *    everything that it calls share 512 bytes of stack, and no helper can take a function (bpf_loop).
 *  - Maps are the only data: no variables outside functions, no tables of constants, no const volatile. The loader
 *    passes constants as macros. __builtin_memcmp and large __builtin_memcpy become calls, so do not use them.
 *  - Read a pointer of the context once: struct bpf_sock *sk = ctx->sk. A second read after a test may give null.
 *  - In a loop with a constant bound and another exit condition, call clb_opaque(index) before that test. Otherwise the
 *    optimizer merges both bounds into one that the verifier does not understand. Count in a loop with
 *    __sync_fetch_and_add on a local variable: the verifier then forgets its value instead of following each value.
 *  - bpf_htonl and similar are functions, so an initializer outside functions cannot use them.
 *
 * Tested with BCC 0.26 and 0.31: spin locks in values of hashes and of socket storage, sock_addr programs of every
 * kind, sock_ops, sock_release, bounded loops, switch, division, atomics with and without a result, a part of a map
 * value as a key.
 */
#ifndef CLB_DIALECT_H
#define CLB_DIALECT_H

/* Kernel features are chosen at compile time, by macros that are 0 or 1: CLB_CAN_SET_ERRNO (hooks set the errno, 6.1),
 * CLB_CAN_READ_OPTIONS (programs can read the options of a socket, 6.1),
 * CLB_CAN_LOOP (bpf_loop, 5.17; never with BCC), CLB_CAN_EXCHANGE (atomics that return the old value: compare and
 * exchange, fetch and add; 5.12; never with BCC) and CLB_CAN_READ_KERNEL (the kernel has BTF; never with BCC). The
 * package has one object with all of them, one without BTF, and one without any for 5.10. */

/* Keep the value, but make the optimizer forget everything about it. */
#define clb_opaque(variable) asm volatile("" : "+r"(variable))

/* Keep the value of a variable in memory, but make the verifier forget everything about it. */
#define clb_forget(variable)                                                                                           \
	do {                                                                                                           \
		__u32 clb_nothing = 0;                                                                                 \
		clb_opaque(clb_nothing);                                                                               \
		__sync_fetch_and_add(&(variable), clb_nothing);                                                        \
	} while (0)

/* 0, without the verifier knowing its value. */
#define clb_nothing()                                                                                                  \
	({                                                                                                             \
		__u32 clb_half = 0;                                                                                    \
		clb_forget(clb_half);                                                                                  \
		(__u64) clb_half << 32 | clb_half;                                                                     \
	})

#ifdef CLB_BCC

#define __always_inline inline __attribute__((always_inline))

#define CLB_MAP(name, libbpf_type, bcc_type, key_type, value_type, entries, flags)                                     \
	BPF_F_TABLE(bcc_type, key_type, value_type, name, entries, flags)
#define CLB_SOCKET_MAP(name, value_type) BPF_SK_STORAGE(name, value_type)
#define CLB_RING(name, bytes) BPF_RINGBUF_OUTPUT(name, (bytes) / PAGE_SIZE)

#define clb_lookup(map, key) map.lookup(key)
#define clb_of_socket(map, sk, flags) map.sk_storage_get(sk, 0, flags)
#define clb_reserve(map, size) map.ringbuf_reserve(size)
#define clb_submit(map, record) map.ringbuf_submit(record, 0)

#define CLB_PROGRAM(section)
#define CLB_FUNCTION static __always_inline
#define CLB_GLOBAL static __always_inline

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
#define CLB_SOCKET_MAP(name, value_type)                                                                               \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                                                 \
		__type(key, int);                                                                                      \
		__type(value, value_type);                                                                             \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
	} name SEC(".maps")
#define CLB_RING(name, bytes)                                                                                          \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                                    \
		__uint(max_entries, bytes);                                                                            \
	} name SEC(".maps")

#define clb_lookup(map, key) bpf_map_lookup_elem(&map, key)
#define clb_of_socket(map, sk, flags) bpf_sk_storage_get(&map, sk, 0, flags)
#define clb_reserve(map, size) bpf_ringbuf_reserve(&map, size, 0)
#define clb_submit(map, record) bpf_ringbuf_submit(record, 0)

#define CLB_PROGRAM(section) SEC(section)
/* A separate function, verified once for each call; keeps programs small for the verifier. */
#define CLB_FUNCTION static __attribute__((noinline))
/* A function that is verified once for all callers. So arguments and result must be numbers (pointers: 5.12). */
#define CLB_GLOBAL __attribute__((noinline))

#endif

/* Whether a program of any hook can read the cookie of its network namespace (5.15; CLB_CAN_LOOP implies it). Then it is
 * read for the few connects whose server is out or whose outcome changes something; else for each one. */
#define CLB_CAN_JUDGE_LATE CLB_CAN_LOOP

/* A function on the way of most connects. A call costs 25 instructions, and 10 ns where the kernel makes returns
 * safe (spec_rstack_overflow); but without calls, 5.10 finds too much stack. */
#if CLB_CAN_LOOP
#define CLB_HOT static __always_inline
#else
#define CLB_HOT CLB_FUNCTION
#endif

#endif
