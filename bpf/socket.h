/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of a connected socket: written at connect, cleared at the next connect that is not refused, freed with the
 * socket.
 *
 * The kernel runs the connect hook and most state changes of a socket under the lock of the socket. Only close(2), and
 * connects of other sockets that need the same place, can run at any time. So a record is released, counted or claimed
 * by one atomic exchange of the owner's word. A plain read is enough for the record of a socket that is still open. */
#ifndef CLB_SOCKET_H
#define CLB_SOCKET_H

#include "choose.h"

#define CLB_PROTOCOL_TCP 6
#define CLB_PROTOCOL_UDP 17

/* The choice as a member of its virtual server. */
static __always_inline void clb_name(const struct clb_request *request, struct clb_member *member)
{
	const struct clb_virtual *pool = request->search.pool;

	member->vip = pool->vip;
	member->address[0] = request->to.address[0];
	member->address[1] = request->to.address[1];
	member->address[2] = request->to.address[2];
	member->address[3] = request->to.address[3];
	member->port = request->to.port;
	member->zero = 0;
}

/* Report a decision for the current process. */
CLB_FUNCTION int clb_report_decision(struct bpf_sock_addr *ctx, const struct clb_request *request, __u32 kind)
{
	struct clb_event *event = clb_reserve(clb_events, sizeof(*event));
	struct clb_member member;

	if (!event)
		return 0;
	clb_name(request, &member);
	clb_describe(event, &member, kind, 0);
	event->socket = bpf_get_socket_cookie(ctx);
	event->cgroup = bpf_get_current_cgroup_id();
	event->process = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->command, sizeof(event->command));
	clb_submit(clb_events, event);
	return 0;
}

/* Values of the word of an owner. */
#define CLB_OWNS(cookie) ((cookie) << 1)
#define CLB_OWNS_COUNTED(cookie) ((cookie) << 1 | 1)

/* Where the record of a socket is. */
struct clb_record {
	struct clb_bucket *bucket; /* the bucket of its cookie */
	__u64 *word;               /* of the owner */
	struct clb_socket *socket;
	struct clb_stored *stored; /* the storage of the socket, if it is there */
};

/* Change the word of an owner. Returns whether it had the expected value. */
static __always_inline int clb_exchange(const struct clb_record *record, __u64 from, __u64 to)
{
#if CLB_CAN_EXCHANGE
	return __sync_val_compare_and_swap(record->word, from, to) == from;
#else
	struct bpf_spin_lock *lock = record->stored ? &record->stored->lock : &record->bucket->lock;
	__u64 *word = record->word;
	int was;

	bpf_spin_lock(lock);
	was = *word == from;
	if (was)
		*word = to;
	bpf_spin_unlock(lock);
	return was;
#endif
}

/* The bucket of a socket. Consecutive cookies share one, so that the connects of a host read few cache lines. */
static __always_inline __u32 clb_bucket_of(__u64 cookie)
{
	return cookie / CLB_BUCKET & (clb_buckets - 1);
}

/* Use this place of the bucket for a record. Returns whether there is such a place, which is always so. */
static __always_inline int clb_use_place(struct clb_record *record, __u64 cookie, __u32 way)
{
	__u32 index = clb_bucket_of(cookie) * CLB_BUCKET + way;

	record->word = &record->bucket->socket[way];
	record->socket = clb_lookup(clb_places, &index);
	record->stored = 0;
	return record->socket != 0;
}

/* Use the storage of the socket for a record. Returns whether it has any. */
static __always_inline int clb_use_storage(struct bpf_sock *sk, __u64 flags, struct clb_record *record)
{
	struct clb_stored *stored = clb_of_socket(clb_sockets, sk, flags);

	if (!stored)
		return 0;
	record->word = &stored->socket;
	record->socket = &stored->record;
	record->stored = stored;
	return 1;
}

/* Find the bucket of a socket. */
static __always_inline int clb_find_bucket(__u64 cookie, struct clb_record *record)
{
	__u32 index = clb_bucket_of(cookie);

	record->bucket = clb_lookup(clb_owners, &index);
	return record->bucket != 0;
}

/* Find the record of a socket in its bucket, which is found before. Returns whether it has one. */
static __always_inline int clb_find_in_bucket(struct bpf_sock *sk, __u64 cookie, struct clb_record *record)
{
	const __u64 *socket = record->bucket->socket;

	if (socket[0] >> 1 == cookie)
		return clb_use_place(record, cookie, 0);
	if (socket[1] >> 1 == cookie)
		return clb_use_place(record, cookie, 1);
	if (socket[2] >> 1 == cookie)
		return clb_use_place(record, cookie, 2);
	if (socket[3] >> 1 == cookie)
		return clb_use_place(record, cookie, 3);
	return record->bucket->crowded && sk && clb_use_storage(sk, 0, record) && *record->word >> 1 == cookie;
}

/* Find the record of a socket. Returns whether it has one. */
static __always_inline int clb_find_record(struct bpf_sock *sk, __u64 cookie, struct clb_record *record)
{
	return clb_find_bucket(cookie, record) && clb_find_in_bucket(sk, cookie, record);
}

static __always_inline int clb_same_peer(const struct clb_member *member, const __be32 *address, __be16 port)
{
	return member->port && member->port == port && member->address[3] == address[3] &&
	       member->address[0] == address[0] && member->address[1] == address[1] && member->address[2] == address[2];
}

/* The record of a socket that is connected to this peer. A record with another peer is not trusted. */
static __always_inline struct clb_socket *clb_connection(struct bpf_sock *sk, __u64 cookie, const struct clb_vip *peer)
{
	struct clb_record record;

	if (!clb_find_record(sk, cookie, &record) || !clb_same_peer(&record.socket->member, peer->address, peer->port))
		return 0;
	return record.socket;
}

/* Whether the VIP of a member and the port that the application connected to are these, also through the wildcard. */
static __always_inline int clb_is_asked(const struct clb_member *member, __be16 port, const struct clb_vip *asked)
{
	const __be32 *address = member->vip.address;

	return member->port &&
	       !((address[0] ^ asked->address[0]) | (address[1] ^ asked->address[1]) |
		 (address[2] ^ asked->address[2]) | (address[3] ^ asked->address[3]) | (__u32)(port ^ asked->port));
}

/* Count a socket in the active connections of its server, if its virtual server counts them. */
static __always_inline void clb_count_in(const struct clb_record *record, __u64 cookie)
{
	struct clb_socket *socket = record->socket;
	struct clb_server *server = socket->counts ? clb_server_since(&socket->server, socket->began) : 0;

	if (!server)
		return;
	__sync_fetch_and_add(&server->active, 1);
	if (!clb_exchange(record, CLB_OWNS(cookie), CLB_OWNS_COUNTED(cookie)))
		__sync_fetch_and_add(&server->active, -1);
}

/* Release the record of a socket, and end its count. Returns 0 if it is no longer that of the socket. */
CLB_HOT int clb_release(const struct clb_record *record, __u64 cookie)
{
	const struct clb_socket *socket = record->socket;
	__u32 index = socket->server, began = socket->began;
	__u64 word = *record->word;
	struct clb_server *server;

	if (word >> 1 != cookie || !clb_exchange(record, word, 0))
		return 0;
	if (record->stored)
		__sync_fetch_and_add(&record->bucket->crowded, -1);
	server = word & 1 ? clb_server_since(&index, began) : 0;
	if (server)
		__sync_fetch_and_add(&server->active, -1);
	return 1;
}

static __always_inline void clb_copy(const struct clb_socket *socket, struct clb_sent *sent)
{
	sent->member = socket->member;
	sent->began = socket->began;
	sent->started = socket->started;
	sent->server = socket->server;
	sent->at = socket->at;
	sent->rank = socket->rank;
	sent->watched = socket->watched;
}

/* As clb_release; sent is where the socket was sent. */
static __always_inline int clb_take(const struct clb_record *record, __u64 cookie, struct clb_sent *sent)
{
	clb_copy(record->socket, sent);
	return clb_release(record, cookie);
}

/* Whether the outcome of a connect counts for the health of its server; see also clb_is_judge. */
static __always_inline int clb_is_watched(const struct clb_request *request)
{
	return request->search.pool->eject_after && request->search.home;
}

/* Claim a free record and write where a socket is sent. Returns whether the record was free. */
static __always_inline int clb_fill(const struct clb_record *record, __u64 cookie, const struct clb_request *request)
{
	const struct clb_virtual *pool = request->search.pool;
	int counts = (pool->flags & CLB_COUNT_ACTIVE) != 0, watched = clb_is_watched(request);
	struct clb_server *server = request->server;
	struct clb_socket *socket = record->socket;

	if (!clb_exchange(record, 0, CLB_OWNS(cookie)))
		return 0;
	socket->began = server && (counts || watched) ? clb_began(server) : 0;
	socket->started = 0;
	clb_name(request, &socket->member);
	socket->server = request->to.server;
	socket->asked = request->asked.port;
	socket->rank = request->to.rank;
	socket->counts = counts;
	socket->watched = watched;
	socket->follows = 0;
	socket->expired = 0;
	socket->at = 0;
	socket->connect_timeout_ms = pool->connect_timeout_ms;
	socket->dead_after_ms = pool->dead_after_ms;
	socket->repeats = 0;
	if (request->asked.protocol == CLB_PROTOCOL_UDP) /* TCP is counted when its SYN is sent */
		clb_count_in(record, cookie);
	return 1;
}

/* The kernel has no memory for the storage of a socket: net.core.optmem_max, or the limit of its memory cgroup. */
static __always_inline void clb_lose_record(void)
{
	__u32 index = CLB_COUNT_RECORDS_LOST;
	__u64 *lost = clb_lookup(clb_counts, &index);

	if (lost)
		__sync_fetch_and_add(lost, 1);
}

/* Record where a socket is sent, in its bucket, which is found before, or in its storage. Returns whether there was
 * memory for the record. */
static __always_inline int clb_remember(struct bpf_sock *sk, __u64 cookie, const struct clb_request *request,
					struct clb_record *record)
{
	const __u64 *socket = record->bucket->socket;

	if (!socket[0] && clb_use_place(record, cookie, 0) && clb_fill(record, cookie, request))
		return 1;
	if (!socket[1] && clb_use_place(record, cookie, 1) && clb_fill(record, cookie, request))
		return 1;
	if (!socket[2] && clb_use_place(record, cookie, 2) && clb_fill(record, cookie, request))
		return 1;
	if (!socket[3] && clb_use_place(record, cookie, 3) && clb_fill(record, cookie, request))
		return 1;
	if (!clb_use_storage(sk, BPF_SK_STORAGE_GET_F_CREATE, record)) {
		clb_lose_record();
		return 0;
	}
	__sync_fetch_and_add(&record->bucket->crowded, 1);
	if (clb_fill(record, cookie, request))
		return 1;
	__sync_fetch_and_add(&record->bucket->crowded, -1);
	return 0;
}

#endif
