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

/* Values of the word of an owner. */
#define CLB_OWNS(cookie) ((cookie) << 1)
#define CLB_OWNS_COUNTED(cookie) ((cookie) << 1 | 1)

struct clb_record {
	struct clb_owner *owner;
	struct clb_socket *socket;
};

static __always_inline int clb_owns(const struct clb_owner *owner, __u64 cookie)
{
	return owner->socket >> 1 == cookie;
}

/* Change the word of an owner. Returns whether it had the expected value. */
static __always_inline int clb_exchange(struct clb_owner *owner, __u64 from, __u64 to)
{
#if CLB_CAN_EXCHANGE
	return __sync_val_compare_and_swap(&owner->socket, from, to) == from;
#else
	int was;

	bpf_spin_lock(&owner->lock);
	was = owner->socket == from;
	if (was)
		owner->socket = to;
	bpf_spin_unlock(&owner->lock);
	return was;
#endif
}

/* The record in the storage of the socket. Returns whether there is one, of any owner. */
static __always_inline int clb_stored_record(struct bpf_sock *sk, __u64 flags, struct clb_record *record)
{
	struct clb_stored *stored = clb_of_socket(clb_sockets, sk, flags);

	if (!stored)
		return 0;
	record->owner = (struct clb_owner *)stored;
	record->socket = &stored->record;
	return 1;
}

/* Find the record of a socket. Returns whether it has one. */
static __always_inline int clb_find_record(struct bpf_sock *sk, __u64 cookie, struct clb_record *record)
{
	__u32 index = cookie & (CLB_PLACES - 1);

	record->owner = clb_lookup(clb_owners, &index);
	if (!record->owner)
		return 0;
	if (clb_owns(record->owner, cookie)) {
		record->socket = clb_lookup(clb_places, &index);
		return record->socket != 0;
	}
	return record->owner->crowded && clb_stored_record(sk, 0, record) && clb_owns(record->owner, cookie);
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
	if (!clb_exchange(record->owner, CLB_OWNS(cookie), CLB_OWNS_COUNTED(cookie)))
		__sync_fetch_and_add(&server->active, -1);
}

/* Read where a socket was sent, and end its count. Returns 0 if the record is no longer that of the socket.
 * With give_back, the record is free afterwards. */
CLB_FUNCTION int clb_take(struct clb_owner *owner, struct clb_socket *socket, __u64 cookie, struct clb_sent *sent,
			  int give_back)
{
	__u64 word = owner->socket, next = give_back ? 0 : CLB_OWNS(cookie);
	struct clb_server *server;

	if (word >> 1 != cookie)
		return 0;
	sent->member = socket->member;
	sent->began = socket->began;
	sent->started = socket->started;
	sent->server = socket->server;
	sent->priority = socket->priority;
	sent->watched = socket->watched;
	if (!clb_exchange(owner, word, next)) /* another program has ended the count meanwhile */
		return clb_exchange(owner, CLB_OWNS(cookie), next);
	server = word & 1 ? clb_server_since(&sent->server, sent->began) : 0;
	if (server)
		__sync_fetch_and_add(&server->active, -1);
	return 1;
}

/* Claim a free record and write where a socket is sent. Returns whether the record was free. */
static __always_inline int clb_fill(const struct clb_record *record, const struct clb_slot *slot,
				    const struct clb_search *search)
{
	int counts = (search->flags & CLB_COUNT_ACTIVE) != 0, watched = search->eject_after != 0;
	struct clb_server *server = search->server;
	struct clb_socket *socket = record->socket;

	if (!clb_exchange(record->owner, 0, CLB_OWNS(search->cookie)))
		return 0;
	socket->began = server && (counts || watched) ? clb_began(server) : 0;
	socket->started = 0;
	socket->server = slot->server;
	socket->asked = search->asked;
	socket->priority = slot->priority;
	socket->counts = counts;
	socket->watched = watched;
	socket->member = slot->member;
	if (search->vip.protocol == CLB_PROTOCOL_UDP) /* TCP is counted when its SYN is sent */
		clb_count_in(record, search->cookie);
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

/* Record where a socket is sent. Returns whether there was memory for the record. */
static __always_inline int clb_remember(struct bpf_sock *sk, const struct clb_slot *slot,
					const struct clb_search *search, struct clb_record *record)
{
	__u32 index = search->cookie & (CLB_PLACES - 1);

	record->owner = clb_lookup(clb_owners, &index);
	record->socket = clb_lookup(clb_places, &index);
	if (!record->owner || !record->socket)
		return 0;
	if (clb_fill(record, slot, search))
		return 1;
	record->owner->crowded = 1;
	if (clb_stored_record(sk, BPF_SK_STORAGE_GET_F_CREATE, record))
		return clb_fill(record, slot, search);
	clb_lose_record();
	return 0;
}

#endif
