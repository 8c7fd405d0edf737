/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the programs in the kernel and everything that reads or writes their maps.
 *
 * This header includes nothing; whoever includes it brings __u8, __u16, __u32, __u64, __be16 and __be32.
 * clb_discovery/core/layout.py is its mirror in Python, and a test compares the two through the object's BTF.
 * A change here that is not purely additive is a new CLB_LAYOUT: the number is part of the pins' path, so that two
 * layouts never meet in one map.
 *
 * Addresses are 16 bytes in network byte order, IPv4 in mapped form (RFC 4291 section 2.5.5.2):
 *
 *     10.64.0.1     00 00 00 00  00 00 00 00  00 00 ff ff  0a 40 00 01
 *     fd00:64::1    fd 00 00 64  00 00 00 00  00 00 00 00  00 00 00 01
 *
 * so a dual-stack socket that connects to ::ffff:10.64.0.1 asks for the very same key as an IPv4 socket.
 * Ports are in network byte order too. Everything else is in the byte order of the host. Padding is explicit, is
 * called zero, and is zero.
 *
 * How the maps hang together:
 *
 *     clb_addresses   address            -> 1                    is this address a VIP of ours at all?
 *     clb_virtual     struct clb_vip     -> struct clb_virtual   the current generation of the pool, and its scheduler
 *     clb_slots       struct clb_place   -> struct clb_slot      the real servers of a generation, 0 to servers - 1
 *     clb_counters    struct clb_member  -> __u64 per CPU        connects that were sent there
 *     clb_labels      struct clb_vip     -> struct clb_label     names for people; no program reads them
 *     clb_info        0                  -> struct clb_info      what was loaded; no program reads it
 *
 * The order in which a pool is published, so that a connect sees the whole old pool or the whole new one:
 *
 *  1. counters and labels of what is new, then all slots of a fresh generation;
 *  2. the one element of clb_virtual, replaced: from here on connects use the new generation;
 *  3. the VIP's address in clb_addresses, where it is new;
 *  4. an RCU grace period: no program that read the old generation runs any more;
 *  5. the slots of the old generation, and counters and labels that nothing refers to, deleted.
 *
 * What a reader has to know: a hash element that is replaced or deleted may be recycled for another key while a
 * program still holds a pointer to it. Elements of clb_virtual are replaced, so what is read through one is believed
 * only if the slot that it leads to names the virtual server that was asked for. Slots and counters are only deleted
 * after a grace period, so they cannot change under a reader. An element that is replaced can also be missed once by
 * a lookup that is walking its bucket at that moment; elements of clb_addresses are therefore never replaced, and a
 * look-up in clb_virtual that fails behind a known address is repeated.
 */
#ifndef CLB_H
#define CLB_H

#define CLB_LAYOUT 1

#define CLB_MAX_VIRTUAL_SERVERS 65536 /* elements of clb_virtual, clb_addresses and clb_labels */
#define CLB_MAX_SLOTS 524288          /* old and new generation of a pool exist side by side for a moment */

/* Schedulers: clb_virtual.algorithm */
#define CLB_RANDOM 0 /* weighted random by alias table */

/* Bits of clb_info.features */
#define CLB_FEATURE_ERRNO 1 /* an empty pool fails with ECONNREFUSED; without it, with EPERM */

/* Where an application connects to. Example: 10.64.0.1:6379/tcp is mapped address, 18 eb, 06, 00. */
struct clb_vip {
	__be32 address[4];
	__be16 port;   /* 0: every port of the address */
	__u8 protocol; /* IPPROTO_TCP (6) or IPPROTO_UDP (17) */
	__u8 zero;
};

/* The published state of a virtual server: one element, replaced as a whole. */
struct clb_virtual {
	__u64 generation; /* of the pool's slots; never reused, starts at 1 */
	__u32 servers;    /* slots of this generation, at least 1: an empty pool has one slot that refuses */
	__u32 tier;       /* the first this many slots are the lowest tier (RFC 2782 priority); only they are picked */
	__u32 algorithm;  /* CLB_RANDOM */
	__u32 zero;
};

/* Where a slot is. */
struct clb_place {
	__u64 generation;
	__u32 index; /* 0 to clb_virtual.servers - 1 */
	__u32 zero;
};

/* A real server of a virtual server, or with port 0 and the address all zero the refusal of an empty pool. Its identity
 * is the same in every generation, which is why counters hang on it. */
struct clb_member {
	struct clb_vip vip; /* whose pool this is */
	__be32 address[4];
	__be16 port;
	__u16 zero;
};

/* One column of the alias table (Walker 1977, Vose 1991), and the real server it belongs to: draw r below out_of; if r is
 * below keep it is this server, else the one in slot alias. Example, weights 1 and 3: slot 0 keeps 2 of 4 and has alias
 * 1, slot 1 keeps 4 of 4; together 2/8 and 6/8. Outside the lowest tier keep and out_of describe the table of the
 * slot's own tier, and alias lies in it. */
struct clb_slot {
	struct clb_member member;
	__u32 keep;
	__u32 out_of;
	__u32 alias;
	__u16 weight;   /* as discovery gave it, for people */
	__u16 priority; /* as discovery gave it: slots are sorted by it */
};

/* Names for people, NUL-terminated UTF-8. */
struct clb_label {
	char service[256];
	char source[272]; /* "srv:_redis._tcp.example" */
};

/* What was loaded, written once by the loader. */
struct clb_info {
	__u32 layout;   /* CLB_LAYOUT */
	__u32 features; /* CLB_FEATURE_* bits */
	char loader[16];  /* "object" or "bcc" */
	char build[72];   /* SHA-256 of the object, in hexadecimal */
	char cgroup[1024]; /* path of the cgroup that the programs are attached to */
};

_Static_assert(sizeof(struct clb_vip) == 20, "clb_vip");
_Static_assert(sizeof(struct clb_virtual) == 24, "clb_virtual");
_Static_assert(sizeof(struct clb_place) == 16, "clb_place");
_Static_assert(sizeof(struct clb_member) == 40, "clb_member");
_Static_assert(sizeof(struct clb_slot) == 56, "clb_slot");
_Static_assert(sizeof(struct clb_label) == 528, "clb_label");
_Static_assert(sizeof(struct clb_info) == 1120, "clb_info");

#endif
