/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the programs in the kernel and every process that reads or writes their maps.
 *
 * This header includes nothing; the including file must define __u8, __u16, __u32, __u64, __be16 and __be32.
 * clb_discovery/layout/structs.py is its mirror in Python; a test compares both through the BTF of the object.
 * A change here that is not purely additive needs a new CLB_LAYOUT. The number is part of the path of the pins, so
 * that two layouts never share a map.
 *
 * Addresses are 16 bytes in network byte order, IPv4 in mapped form (RFC 4291 section 2.5.5.2):
 *
 *     10.64.0.1     00 00 00 00  00 00 00 00  00 00 ff ff  0a 40 00 01
 *     fd00:64::1    fd 00 00 64  00 00 00 00  00 00 00 00  00 00 00 01
 *
 * So a dual-stack socket that connects to ::ffff:10.64.0.1 looks up the same key as an IPv4 socket.
 * Ports are also in network byte order. Everything else is in the byte order of the host. Padding is explicit, is
 * named zero, and is zero.
 *
 * The maps:
 *
 *     clb_filter      index of 64 bits   -> __u64                can this address be a VIP of ours?
 *     clb_chains      hash of the VIP    -> __u32                the first virtual server with this hash; 0: none
 *     clb_virtual     index              -> struct clb_virtual   a virtual server: generation, scheduler, limits
 *     clb_rows        index              -> struct clb_row       real servers of a generation, in consecutive rows
 *     clb_overflow    struct clb_place   -> struct clb_row       rows of generations that do not fit into clb_rows
 *     clb_servers     index              -> struct clb_server    counters and health of a real server
 *     clb_steering    index of a server  -> struct clb_steering  what the sidecar says of it; it alone writes there
 *     clb_labels      struct clb_vip     -> struct clb_label     names for display; no program reads them
 *     clb_info        0                  -> struct clb_info      record of the loader; no program reads it
 *     clb_home        0                  -> struct clb_home      the network namespace whose connects judge servers
 *     clb_dice        0                  -> __u64 per CPU        state of the random number generator
 *     clb_owners      bucket of a cookie -> struct clb_bucket    the connected sockets that have these places
 *     clb_places      index              -> struct clb_socket    their records: where each was sent
 *     clb_sockets     socket             -> struct clb_stored    its record if its bucket was full; freed with it
 *     clb_peers       socket             -> struct clb_peers     real servers of an unconnected UDP socket
 *     clb_listener    CLB_LISTENS_*      -> __u64                time until which a ring buffer is read
 *     clb_events      ring buffer of struct clb_event            decisions and outcomes, only while it is read
 *     clb_changes     ring buffer of struct clb_change           servers that go out of service or come back, likewise
 *     clb_counts      CLB_COUNT_*        -> __u64                counters that belong to no server
 *
 * A published virtual server is never changed. It and its rows are written where no connect can reach them, and then
 * one aligned store of 32 bits, the *link*, leads connects there: the first element of a chain, or the `next` of the
 * element before. Both maps are mapped into the memory of the writer (BPF_F_MMAPABLE) for these stores, because an
 * update by bpf(2) copies bytes, and a program could read half of it.
 *
 * The order in which a pool is published, so that a connect sees the whole old pool or the whole new one:
 *
 *  1. write new servers, then rows of the new generation, then new elements of clb_virtual, then new labels;
 *  2. store the links: from here on, connects use the new generation. A new virtual server becomes the first of its
 *     chain; a replaced one leaves its place in the chain to the new one; one that is gone is passed over;
 *  3. set the bit of the VIP's address in clb_filter, if it is not set;
 *  4. wait for an RCU grace period: no program that has read the old links is running any more;
 *  5. now elements of clb_virtual and rows that no link leads to can be reused; delete the old generation in
 *     clb_overflow and old labels; set removed servers to zero.
 *
 * An index of clb_servers that was set to zero is reused only after another grace period. So a program that was about
 * to count a connect on the removed server cannot count it on the next one.
 *
 * An element of clb_steering is cleared before its index of clb_servers is reused. Elements of clb_servers themselves are
 * only ever set to zero: an update by bpf(2) would overwrite what programs count at the same time.
 *
 * For programs: what a link leads to stays as it is until the program ends, so nothing has to be copied or checked.
 * For user space: while it reads, elements can be reused. A row carries the generation that it belongs to.
 *
 * The record of a socket is in one of the places of the bucket that its cookie names; or, if other sockets have all of
 * them, in the storage of the socket itself (SK_STORAGE). A place is claimed at connect and released at close. Cookies
 * are never reused. So a place that is not released is lost for other sockets, but never misleads them. Owners are
 * separate from records and small: for most sockets that are not ours, programs read only them.
 *
 * A record alone is never trusted: it is cleared at each connect that is not refused, and its peer is compared with the
 * real peer.
 */
#ifndef CLB_H
#define CLB_H

#define CLB_LAYOUT 3

#define CLB_MAX_VIRTUAL_SERVERS 65536 /* virtual servers; old and new elements exist side by side for a short time */
#define CLB_VIRTUAL 81920             /* elements of clb_virtual; no link leads to element 0 */
#define CLB_MAX_ROWS 131072           /* rows; elements of clb_overflow, where all of them have room */
#define CLB_ROW 8                     /* slots of a row, a power of two: one look-up is enough for most pools */
#define CLB_MAX_SERVERS 262144        /* elements of clb_servers, the refusals of all virtual servers among them */
#define CLB_BUCKET 4                  /* places of a bucket, a power of two */

/* Sizes that the loader can change when it makes the maps. */
#ifndef CLB_ROWS
#define CLB_ROWS 16384 /* elements of clb_rows; further pools are in clb_overflow, which is slower */
#endif
#ifndef CLB_BUCKETS
#define CLB_BUCKETS 16384 /* elements of clb_owners, a power of two; sockets beyond CLB_BUCKET a bucket are slower */
#endif
#define CLB_PLACES (CLB_BUCKETS * CLB_BUCKET) /* elements of clb_places: those of a bucket are consecutive */

/* The filter of addresses, one bit for each hash: with 10,000 VIPs, 4 of 100 other addresses pass, and are looked up in
 * vain. hash(address) = the upper CLB_FILTER_BITS of
 * (words 0 and 1 as 64 bits) * CLB_FILTER_HIGH + (words 2 and 3) * CLB_FILTER_LOW */
#define CLB_FILTER_BITS 18
#define CLB_FILTER_HIGH 0x9e3779b97f4a7c15ULL /* odd, without a pattern: 2^64 divided by the golden ratio */
#define CLB_FILTER_LOW 0xd1342543de82ef95ULL  /* a multiplier of Steele and Vigna (2021) */

/* Chains of virtual servers. hash(VIP) = the upper CLB_CHAIN_BITS of
 * (hash of its address as above, all 64 bits) + (port as it is in memory << 8 | protocol) * CLB_FILTER_HIGH */
#define CLB_CHAIN_BITS 17
#define CLB_CHAIN 16 /* most elements of a chain */

#define CLB_EVENTS_BYTES 262144 /* size of clb_events; events that do not fit are dropped */
#define CLB_CHANGES_BYTES 65536 /* size of clb_changes, likewise */

/* Keys of clb_listener */
#define CLB_LISTENS_EVENTS 0  /* `clb-discovery trace` reads clb_events */
#define CLB_LISTENS_CHANGES 1 /* the sidecar reads clb_changes, and probes the servers that are named there */
#define CLB_LISTENERS 2

/* Schedulers: clb_virtual.algorithm */
#define CLB_RANDOM 0      /* weighted random by alias table */
#define CLB_ROUND_ROBIN 1 /* weighted, in one order over all CPUs */
#define CLB_LEAST_CONN 2  /* fewest active connections per weight: of all in a tier of up to 8, else of two */

/* Bits of clb_info.features */
#define CLB_FEATURE_ERRNO 1 /* connects to an empty pool fail with ECONNREFUSED; without it, with EPERM */

#define CLB_FEATURE_LOOP 2 /* programs can look at all servers of a pool; without it, at 896 (BCC: 384) */

#define CLB_FEATURE_OPTIONS 4 /* programs can read the options of a socket; clb_virtual.dead_after_ms needs it */

/* Bits of clb_virtual.flags */
#define CLB_COUNT_ACTIVE 1 /* keep clb_server.active; CLB_LEAST_CONN needs it */
#define CLB_STEERED 2      /* look at clb_steering for every connect: the sidecar checks its servers */
#define CLB_SUSPECTS 4     /* a connect that fails or waits makes a server suspect while the sidecar listens */

/* clb_change.kind */
#define CLB_CHANGE_SUSPECT 1  /* its first failed connect, or one that waits for an answer */
#define CLB_CHANGE_EJECTED 2  /* it was ejected, or its probe failed */
#define CLB_CHANGE_RETURNED 3 /* a connect to it succeeded, or the sidecar has reached it */
#define CLB_CHANGE_NEEDED 4   /* a connect to it failed or waits, but it stays: too few others take connects */

/* clb_event.kind */
#define CLB_EVENT_SENT 1        /* a connect or first datagram was sent to a real server */
#define CLB_EVENT_REFUSED 2     /* the pool is empty */
#define CLB_EVENT_ESTABLISHED 3 /* the real server accepted it */
#define CLB_EVENT_FAILED 4      /* the real server refused it, was unreachable, or did not answer in time */
#define CLB_EVENT_GIVEN_UP 5    /* the application or this host ended it, sooner than silence counts */
#define CLB_EVENT_EJECTED 6     /* this failure led to an ejection of the real server */

/* clb_event.cause and clb_server.cause: why a connect failed */
#define CLB_CAUSE_NONE 0        /* it did not fail */
#define CLB_CAUSE_REFUSED 1     /* the real server reset it */
#define CLB_CAUSE_TIMED_OUT 2   /* the kernel repeated its SYN until the last timer */
#define CLB_CAUSE_SILENT 3      /* the application gave it up, after clb_virtual.silent_after_ms without an answer */
#define CLB_CAUSE_UNREACHABLE 4 /* an ICMP error */
#define CLB_CAUSE_UNKNOWN 5     /* timed out or unreachable: nothing watched the timers */

#define CLB_HOME_KNOWN 0xffffffffffffffffULL /* clb_home.known, as a mask */

/* Keys of clb_counts */
#define CLB_COUNT_RECORDS_LOST 0 /* connects, and datagrams of unconnected sockets, without memory for a record */
#define CLB_COUNTS 16            /* elements; all others are zero */

/* The address that an application connects to. Example: 10.64.0.1:6379/tcp is mapped address, 18 eb, 06, 00. */
struct clb_vip {
	__be32 address[4];
	__be16 port;   /* 0: every port of the address */
	__u8 protocol; /* IPPROTO_TCP (6) or IPPROTO_UDP (17) */
	__u8 zero;
};

/* A virtual server. It is never changed while a link leads to it, except for `next`. */
struct clb_virtual {
	struct clb_vip vip;
	__u32 next;            /* the next virtual server of its chain; 0: none */
	__u64 generation;      /* generation of the slots of the pool; never reused, starts at 1 */
	__u32 row;             /* index of its first row in clb_rows; CLB_OVERFLOWS: they are in clb_overflow */
	__u32 servers;         /* slots of this generation, at least 1: an empty pool has one, which refuses connects */
	__u32 tier;            /* size of the lowest tier, whose slots come first */
	__u16 algorithm;       /* CLB_RANDOM, CLB_ROUND_ROBIN or CLB_LEAST_CONN */
	__u16 flags;           /* bits: CLB_COUNT_ACTIVE, CLB_STEERED, CLB_SUSPECTS */
	__u32 eject_after;     /* consecutive failed connects that eject a server; 0: never */
	__u32 eject_first_ms;  /* duration of the first ejection; doubles with each repetition */
	__u32 eject_most_ms;   /* longest ejection */
	__u32 refusal;         /* index of the server that counts refused connects and turns */
	__u32 silent_after_ms; /* a connect that is given up fails if it was unanswered for so long; 0: never */
	__u32 connect_timeout_ms; /* a TCP connect that is not answered for so long ends with ETIMEDOUT; 0: no limit */
	__u32 dead_after_ms; /* a TCP connection whose peer does not answer for so long is closed; 0: the kernel decides */
	__u32 zero[5];       /* room for more limits */
};
#define CLB_OVERFLOWS 0xffffffff

/* The key of a row in clb_overflow. */
struct clb_place {
	__u64 generation;
	__u32 row; /* has slots row * CLB_ROW to row * CLB_ROW + CLB_ROW - 1 of the generation */
	__u32 zero;
};

/* A real server of a virtual server; or, with port 0 and a zero address, the refusal of an empty pool. It has the same
 * element of clb_servers in every generation, so its counters continue. */
struct clb_member {
	struct clb_vip vip; /* the virtual server of the pool */
	__be32 address[4];
	__be16 port;
	__u16 zero;
};

/* One column of the alias table (Walker 1977, Vose 1991), and its real server; port 0 refuses connects. Draw r below
 * out_of: if r is below keep, choose this server, else the one in slot alias. Example, weights 1 and 3: slot 0 keeps 2
 * of 4 and has alias 1, slot 1 keeps 4 of 4; together 2/8 and 6/8. Each tier has its own table. */
struct clb_slot {
	__be32 address[4];
	__be16 port;
	__u16 rank;   /* of its tier, from 0 for the lowest; slots are sorted by it */
	__u32 server; /* index of the member in clb_servers */
	__u32 keep;
	__u32 out_of;
	__u32 alias;
	__u32 first;    /* index of the first slot of its tier */
	__u32 tier;     /* number of slots of its tier */
	__u32 share;    /* the weight that counts in its tier */
	__u16 weight;   /* as given by discovery */
	__u16 priority; /* as given by discovery */
	__u16 part;     /* which part of the pool it comes from, from 0 */
	__u16 zone;     /* which zone it is in; 0: none known */
};

/* Consecutive slots of a generation. Slots after the last one are zero: out_of is 0. */
struct clb_row {
	__u64 generation;
	struct clb_slot slot[CLB_ROW];
};

/* Counters and health of a real server, in one cache line. They outlive generations and are zero for a new server. Times
 * are in nanoseconds of CLOCK_MONOTONIC. Counters wrap around, except for in_row and ejections. */
struct clb_server {
	__u64 connects;      /* connects and first datagrams sent there; for a refusal, those that were refused */
	__u64 ejected_until; /* time from which it may be probed; 0: not ejected */
	__u64 changed_at;    /* when it was ejected last or came back since; 0: never; for a refusal, see clb_recalls */
	__u32 failures;      /* connects that failed; for a refusal, turns taken */
	__u32 refused;       /* failures by their cause, if it is known */
	__u32 timed_out;
	__u32 silent;
	__u32 unreachable;
	__u32 active;        /* TCP connections from their SYN to their close(2), connected UDP sockets */
	__u32 began;         /* tells it from a later server with the same index; 0: no socket has a record of it yet */
	__u16 times_ejected; /* in total */
	__u16 in_row;        /* failures since the last success */
	__u8 ejections;      /* ejections in close succession: each doubles the duration */
	__u8 probing;        /* connects sent to probe whether it works again, of which no outcome is known yet */
	__u8 cause;          /* CLB_CAUSE_* of the failure that ejected it last */
	__u8 suspect;        /* 1: it is out because of one connect, and the sidecar probes it; see clb_obey */
	struct bpf_spin_lock lock; /* protects ejected_until, changed_at, began, and the fields of less than 32 bits */
};

/* What the sidecar has found out about a real server. The later of decided_at and clb_server.changed_at decides: if it is
 * this one, the server is out until out_until, whatever clb_server.ejected_until is. It is a lease: when it is over, the
 * server can be probed, or takes connects. Programs look here for servers that are ejected or suspect, and with
 * CLB_STEERED for all. Both are written by one aligned store each, out_until first: programs read them in the other order,
 * so a new decision never goes with an old time. */
struct clb_steering {
	__u64 decided_at; /* nanoseconds of CLOCK_MONOTONIC; 0: nothing is known */
	__u64 out_until;  /* likewise; 0: it takes connects */
	__u32 zero[2];    /* for the end of a slow start, and a limit of connections */
};

/* A real server goes out of service, comes back, or fails and cannot be spared. */
struct clb_change {
	__u64 time;   /* nanoseconds of CLOCK_MONOTONIC; clb_server.changed_at, unless it was needed */
	__u32 server; /* index in clb_servers */
	__u32 began;  /* as in clb_server */
	__u32 kind;   /* CLB_CHANGE_* */
	__u16 in_row; /* as in clb_server */
	__u8 cause;   /* CLB_CAUSE_*; 0 if it returned */
	__u8 zero;
};

/* The owners of the records of a bucket, in one cache line. */
struct clb_bucket {
	__u64 socket[CLB_BUCKET];  /* twice the cookie, plus 1 while it is counted in active of its server; 0: free */
	__u32 crowded;             /* sockets that found the bucket full and have their record in SK_STORAGE */
	struct bpf_spin_lock lock; /* protects socket in programs without compare-and-exchange */
	__u64 zero[3];
};

/* The record of a connected socket: where it was sent. */
struct clb_socket {
	__u64 started; /* time of the connect if clb_events needs its outcome, else 0 */
	struct clb_member member;
	__u32 began;  /* of its server: a later server with the same index has not counted this connection */
	__u32 server; /* index in clb_servers */
	__be16 asked; /* the port that the application connected to, which a wildcard VIP lacks */
	__u16 rank;   /* of its tier when it was sent */
	__u8 counts;  /* 1: its virtual server has CLB_COUNT_ACTIVE */
	__u8 watched; /* 1: its outcome may change the health of its server */
	__u8 follows; /* the flags of bpf_sock_ops_cb_flags that we have set for it on the socket */
	__u8 expired; /* 1: its last timer has run out */
	__u32 at; /* when its SYN left, in ticks of the kernel (jiffies); 0: not, or not known to have left this host */
	__u32 connect_timeout_ms; /* as in clb_virtual */
	__u32 dead_after_ms;      /* likewise */
	__u8 repeats;             /* TCP_SYNCNT before we changed it on the socket; 0: we have not, or do not know */
	__u8 zero[3];
};

/* A record in the storage of its socket. */
struct clb_stored {
	__u64 socket; /* as in clb_bucket */
	__u32 zero;
	struct bpf_spin_lock lock;
	struct clb_socket record;
};

/* The peers of an unconnected UDP socket: the real servers of its last few VIPs. So the socket keeps its real server
 * for each VIP, and replies from a real server appear to come from the VIP. */
#define CLB_PEERS 4
struct clb_peer {
	__u32 began; /* as in clb_socket, also server and asked */
	__u32 server;
	__be16 asked;
	__u16 direct;             /* 1: the socket has since sent to the real server's own address */
	__u32 used;               /* value of clb_peers.uses at the last datagram to it */
	__u32 at;                 /* time of the last datagram to or from it, in 2^20 ns (1.05 ms) of CLOCK_MONOTONIC */
	struct clb_member member; /* port 0: free */
};
struct clb_peers {
	struct clb_peer peer[CLB_PEERS];
	__u32 uses; /* incremented with each datagram to a VIP */
	struct bpf_spin_lock lock;
};

/* One decision or outcome. */
struct clb_event {
	__u64 time;    /* nanoseconds of CLOCK_MONOTONIC */
	__u64 latency; /* nanoseconds from the decision to the outcome; 0 in a decision */
	__u64 socket;  /* cookie */
	__u64 cgroup;  /* id of the cgroup of the process; 0 in an outcome */
	__u32 process; /* 0 in an outcome, which belongs to no process */
	__u32 kind;    /* CLB_EVENT_* */
	__u32 cause;   /* CLB_CAUSE_*; 0 unless it failed, or was ejected */
	__u32 zero;
	struct clb_member member;
	char command[16];
};

/* Names for display, NUL-terminated UTF-8. */
struct clb_label {
	char service[256];
	char source[272]; /* "srv:_redis._tcp.example" */
};

/* The record of the loader about what it has loaded; written once. */
struct clb_info {
	__u32 layout;      /* CLB_LAYOUT */
	__u32 features;    /* CLB_FEATURE_* bits */
	char loader[16];   /* "object" or "bcc" */
	char build[72];    /* SHA-256 of the object, in hexadecimal */
	char cgroup[1024]; /* path of the cgroup that the programs are attached to */
};

/* The network namespace that the instance was loaded in. Connects from others are balanced and avoid servers that are
 * out, but their outcomes change the health of no server, and they are not used as probes: there, any process could give
 * a server's address to itself. Before Linux 5.14 only programs can read the cookie of a namespace, so they write it. */
struct clb_home {
	__u64 namespace; /* its cookie */
	__u64 known;     /* CLB_HOME_KNOWN; 0: it is not known, and connects from all namespaces count */
	__u64 learner;   /* cookie of a socket of the loader: where its connect is refused is home */
};

_Static_assert(sizeof(struct clb_vip) == 20, "clb_vip");
_Static_assert(sizeof(struct clb_virtual) == 96, "clb_virtual");
_Static_assert(sizeof(struct clb_place) == 16, "clb_place");
_Static_assert(sizeof(struct clb_member) == 40, "clb_member");
_Static_assert(sizeof(struct clb_slot) == 56, "clb_slot");
_Static_assert(sizeof(struct clb_row) == 456, "clb_row");
_Static_assert(sizeof(struct clb_server) == 64, "clb_server");
_Static_assert(sizeof(struct clb_steering) == 24, "clb_steering");
_Static_assert(sizeof(struct clb_change) == 24, "clb_change");
_Static_assert(sizeof(struct clb_bucket) == 64, "clb_bucket");
_Static_assert(sizeof(struct clb_socket) == 80, "clb_socket");
_Static_assert(sizeof(struct clb_stored) == 96, "clb_stored");
_Static_assert(sizeof(struct clb_peers) == 248, "clb_peers");
_Static_assert(sizeof(struct clb_event) == 104, "clb_event");
_Static_assert(sizeof(struct clb_label) == 528, "clb_label");
_Static_assert(sizeof(struct clb_info) == 1120, "clb_info");
_Static_assert(sizeof(struct clb_home) == 24, "clb_home");

#endif
