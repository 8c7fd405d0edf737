/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the programs in the kernel and everything that reads or writes their maps.
 *
 * This header includes nothing; whoever includes it brings __u8, __u16, __u32, __u64, __be16 and __be32.
 * clb_discovery/layout/structs.py is its mirror in Python, and a test compares the two through the object's BTF.
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
 *     clb_filter      64 bits' number    -> __u64                may this address be a VIP of ours at all?
 *     clb_virtual     struct clb_vip     -> struct clb_virtual   the current generation of the pool, and its scheduler
 *     clb_rows        struct clb_place   -> struct clb_row       the real servers of a generation, in slots 0 to servers - 1
 *     clb_servers     index              -> struct clb_server    what became of connects that were sent there
 *     clb_labels      struct clb_vip     -> struct clb_label     names for people; no program reads them
 *     clb_info        0                  -> struct clb_info      what was loaded; no program reads it
 *     clb_dice        0                  -> __u64 per CPU        state of the random numbers
 *     clb_owners      cookie's low bits  -> struct clb_owner     which connected socket has the place of this number
 *     clb_places      cookie's low bits  -> struct clb_socket    where it was sent
 *     clb_sockets     socket             -> struct clb_stored    the same, of a socket whose place was taken; freed with it
 *     clb_peers       socket             -> struct clb_peers     where an unconnected UDP socket sends
 *     clb_listener    0                  -> __u64                until when somebody listens to clb_events
 *     clb_events      ring buffer of struct clb_event            decisions and outcomes, only while somebody listens
 *     clb_counts      CLB_COUNT_*        -> __u64                what happened and is of no server
 *
 * The order in which a pool is published, so that a connect sees the whole old pool or the whole new one:
 *
 *  1. servers of what is new, then all rows of slots of a fresh generation, then labels of what is new;
 *  2. the one element of clb_virtual, replaced: from here on connects use the new generation;
 *  3. the bit of the VIP's address in clb_filter, where it is not set;
 *  4. an RCU grace period: no program that read the old generation runs any more;
 *  5. the rows of the old generation, and what nothing refers to any more, deleted; servers that have left set to zero.
 *
 * An index of clb_servers that was set to zero is used again after another grace period, so that a program which was
 * just about to count on the server that has left does not count on the next one.
 *
 * What a reader has to know: a hash element that is replaced or deleted may be recycled for another key while a
 * program still holds a pointer to it. Elements of clb_virtual are replaced, so what is read through one is believed
 * only if the slot that it leads to names the virtual server that was asked for. Rows and servers are only deleted
 * after a grace period, so they cannot change under a reader. An element that is replaced can also be missed once by
 * a lookup that is walking its bucket at that moment; so a look-up in clb_virtual that fails although the filter lets the
 * address pass is repeated.
 *
 * A socket's record is in the place that the low bits of its cookie name, or with the socket itself (SK_STORAGE) where
 * another socket has that place. A place is claimed at connect and given back at close. Cookies are never reused, so one
 * that is not given back (the kernel's own sockets see no close) keeps its place from others but never misleads them.
 * Owners are apart from what they own, and small: connects that are none of ours look there only.
 *
 * What a record says is never trusted alone: it is cleared at each connect that is not refused, and what it says of the
 * peer is compared with the real peer.
 */
#ifndef CLB_H
#define CLB_H

#define CLB_LAYOUT 1

#define CLB_MAX_VIRTUAL_SERVERS 65536 /* elements of clb_virtual and clb_labels */
#define CLB_MAX_ROWS 262144           /* old and new generation of a pool exist side by side for a moment */
#define CLB_ROW 8                     /* slots of a row, a power of two: most pools are in one look-up's reach */
#define CLB_MAX_SERVERS 262144        /* elements of clb_servers, the refusals of all virtual servers among them */
#define CLB_PLACES 16384 /* elements of clb_owners and clb_places, a power of two; more sockets are only slower */

/* The filter of addresses, one bit for each hash: with 10,000 VIPs 4 of 100 other addresses pass, and are looked up in vain.
 * hash(address) = the upper CLB_FILTER_BITS of (words 0 and 1 as 64 bits) * CLB_FILTER_HIGH + (2 and 3) * CLB_FILTER_LOW */
#define CLB_FILTER_BITS 18
#define CLB_FILTER_HIGH 0x9e3779b97f4a7c15ULL /* odd, without a pattern: 2^64 divided by the golden ratio */
#define CLB_FILTER_LOW 0xd1342543de82ef95ULL  /* a multiplier of Steele and Vigna (2021) */

#define CLB_EVENTS_BYTES 262144 /* of clb_events; what does not fit while nobody reads is dropped */

/* Schedulers: clb_virtual.algorithm */
#define CLB_RANDOM 0      /* weighted random by alias table */
#define CLB_ROUND_ROBIN 1 /* weighted, in one order for all CPUs */
#define CLB_LEAST_CONN 2  /* fewest active connections per weight: of all in a tier of up to 8, else of two drawn */

/* Bits of clb_info.features */
#define CLB_FEATURE_ERRNO 1 /* an empty pool fails with ECONNREFUSED; without it, with EPERM */

#define CLB_FEATURE_LOOP 2 /* all servers of a pool are looked at where it matters; without it, 896 (BCC: 384) */

/* Bits of clb_virtual.flags */
#define CLB_COUNT_ACTIVE 1 /* keep clb_server.active; CLB_LEAST_CONN needs it */

/* clb_event.kind */
#define CLB_EVENT_SENT 1        /* a connect or first datagram was sent to a real server */
#define CLB_EVENT_REFUSED 2     /* the pool is empty */
#define CLB_EVENT_ESTABLISHED 3 /* the real server accepted */
#define CLB_EVENT_FAILED 4      /* the real server refused, was unreachable, or did not answer in time */
#define CLB_EVENT_GIVEN_UP 5    /* the application, or this host, ended it before there was an answer */
#define CLB_EVENT_EJECTED 6     /* the failure was one too many */

/* Keys of clb_counts */
#define CLB_COUNT_RECORDS_LOST 0 /* connects, and datagrams of unconnected sockets, without memory for a record */
#define CLB_COUNTS 16            /* elements, of which all others are zero */

/* Where an application connects to. Example: 10.64.0.1:6379/tcp is mapped address, 18 eb, 06, 00. */
struct clb_vip {
	__be32 address[4];
	__be16 port;   /* 0: every port of the address */
	__u8 protocol; /* IPPROTO_TCP (6) or IPPROTO_UDP (17) */
	__u8 zero;
};

/* The published state of a virtual server: one element, replaced as a whole. */
struct clb_virtual {
	__u64 generation;     /* of the pool's slots; never reused, starts at 1 */
	__u32 servers;        /* slots of this generation, at least 1: an empty pool has one slot that refuses */
	__u32 tier;           /* the first this many slots are the lowest tier (RFC 2782 priority) */
	__u16 algorithm;      /* CLB_RANDOM, CLB_ROUND_ROBIN or CLB_LEAST_CONN */
	__u16 flags;          /* CLB_COUNT_ACTIVE */
	__u32 eject_after;    /* failed connects in a row that eject a server; 0: never */
	__u32 eject_first_ms; /* how long the first time; doubles with each repetition */
	__u32 eject_most_ms;  /* how long at most */
	__u32 refusal; /* index of the server that stands for the refusal of its empty pool, and knows whose turn it is */
	__u32 zero;
};

/* Where a row of slots is. */
struct clb_place {
	__u64 generation;
	__u32 row; /* of slots row * CLB_ROW to row * CLB_ROW + CLB_ROW - 1 */
	__u32 zero;
};

/* A real server of a virtual server, or with port 0 and the address all zero the refusal of an empty pool. It has the same
 * server in every generation, which is why counters hang on that. */
struct clb_member {
	struct clb_vip vip; /* whose pool this is */
	__be32 address[4];
	__be16 port;
	__u16 zero;
};

/* One column of the alias table (Walker 1977, Vose 1991), and the real server it belongs to: draw r below out_of; if r is
 * below keep it is this server, else the one in slot alias. Example, weights 1 and 3: slot 0 keeps 2 of 4 and has alias
 * 1, slot 1 keeps 4 of 4; together 2/8 and 6/8. Each tier has a table of its own. */
struct clb_slot {
	struct clb_member member;
	__u32 keep;
	__u32 out_of;
	__u32 alias;
	__u32 first;    /* index of the first slot of its tier */
	__u32 tier;     /* slots of its tier */
	__u16 weight;   /* as discovery gave it, for people */
	__u16 priority; /* as discovery gave it: slots are sorted by it */
	__u32 server;   /* index of the member's server */
	__u32 zero;
};

/* Slots side by side; those behind the last one of a generation are zero, and name no virtual server. */
struct clb_row {
	struct clb_slot slot[CLB_ROW];
};

/* What became of connects to a real server. It outlives generations, and is zero for a new one. Times are in nanoseconds
 * of CLOCK_MONOTONIC. */
struct clb_server {
	__u64 connects; /* connects and first datagrams that were sent there; of a refusal, that were refused */
	__u64 failures; /* connects that it, an ICMP error or silence ended; of a refusal, turns taken (CLB_ROUND_ROBIN) */
	__u64 ejected_until; /* when it may be probed; 0: it is not ejected */
	__u64 recovered_at;  /* when it last came back from an ejection; 0: never */
	__u64 began;         /* when it was first sent anything that is remembered; 0: never */
	__u32 active;        /* TCP connections from SYN_SENT until they leave ESTABLISHED, and connected UDP sockets */
	__u32 in_row;        /* failures since the last success */
	__u32 ejections;     /* in close succession: ejected_until doubles with each */
	__u32 probing;       /* 1: a connect has been sent to find out whether it works again */
	struct bpf_spin_lock lock; /* of ejected_until, recovered_at, began, ejections and probing */
	__u32 times_ejected;       /* ever */
};

/* Whose a record is. */
struct clb_owner {
	__u64 socket;  /* twice its cookie, plus 1 while it is counted in its server's active; 0: nobody's */
	__u32 crowded; /* 1: a socket found the place taken, and has its record with itself */
	struct bpf_spin_lock lock; /* of socket, for programs that cannot compare and exchange */
};

/* Where a connected socket was sent. */
struct clb_socket {
	__u64 began;    /* of its server: another server of the same index does not know this connection */
	__u64 started;  /* when, if its outcome is wanted in clb_events; else 0 */
	__u32 server;   /* index of its server */
	__be16 asked;   /* the port that the application asked for, which a wildcard VIP lacks */
	__u16 priority; /* of the slot, to find its tier again */
	__u8 counts;    /* 1: its virtual server has CLB_COUNT_ACTIVE */
	__u8 watched;   /* 1: its virtual server ejects */
	__u8 zero[6];
	struct clb_member member;
};

/* A record with its owner in one. */
struct clb_stored {
	__u64 socket;  /* as in clb_owner, which this begins with */
	__u32 crowded; /* 0 */
	struct bpf_spin_lock lock;
	struct clb_socket record;
};

/* Where an unconnected UDP socket sends: the last few VIPs, so that each goes on to the same real server, and what comes
 * back from one is seen as coming from its VIP. */
#define CLB_PEERS 4
struct clb_peer {
	__u64 began; /* as in clb_socket, like server and asked */
	__u32 server;
	__be16 asked;
	__u16 direct; /* 1: the socket has since sent to the real server by its own address */
	__u32 used;   /* clb_peers.uses when it was last sent to */
	__u32 at;     /* when a datagram last went there or came from there, in 2^20 ns (1.05 ms) of CLOCK_MONOTONIC */
	struct clb_member member; /* port 0: free */
};
struct clb_peers {
	struct clb_peer peer[CLB_PEERS];
	__u32 uses; /* grows with each datagram to a VIP */
	struct bpf_spin_lock lock;
};

/* One decision or outcome. */
struct clb_event {
	__u64 time;    /* CLOCK_MONOTONIC nanoseconds */
	__u64 latency; /* nanoseconds from the decision to the outcome; 0 in a decision */
	__u64 socket;  /* cookie */
	__u64 cgroup;  /* id of the process's cgroup; 0 in an outcome */
	__u32 process; /* 0 in an outcome, which has none */
	__u32 kind;    /* CLB_EVENT_* */
	struct clb_member member;
	char command[16];
};

/* Names for people, NUL-terminated UTF-8. */
struct clb_label {
	char service[256];
	char source[272]; /* "srv:_redis._tcp.example" */
};

/* What was loaded, written once by the loader. */
struct clb_info {
	__u32 layout;      /* CLB_LAYOUT */
	__u32 features;    /* CLB_FEATURE_* bits */
	char loader[16];   /* "object" or "bcc" */
	char build[72];    /* SHA-256 of the object, in hexadecimal */
	char cgroup[1024]; /* path of the cgroup that the programs are attached to */
};

_Static_assert(sizeof(struct clb_vip) == 20, "clb_vip");
_Static_assert(sizeof(struct clb_virtual) == 40, "clb_virtual");
_Static_assert(sizeof(struct clb_place) == 16, "clb_place");
_Static_assert(sizeof(struct clb_member) == 40, "clb_member");
_Static_assert(sizeof(struct clb_slot) == 72, "clb_slot");
_Static_assert(sizeof(struct clb_row) == 576, "clb_row");
_Static_assert(sizeof(struct clb_server) == 64, "clb_server");
_Static_assert(sizeof(struct clb_owner) == 16, "clb_owner");
_Static_assert(sizeof(struct clb_socket) == 72, "clb_socket");
_Static_assert(sizeof(struct clb_stored) == 88, "clb_stored");
_Static_assert(sizeof(struct clb_peers) == 264, "clb_peers");
_Static_assert(sizeof(struct clb_event) == 96, "clb_event");
_Static_assert(sizeof(struct clb_label) == 528, "clb_label");
_Static_assert(sizeof(struct clb_info) == 1120, "clb_info");

#endif
