/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of a connected socket: made at connect, cleared at the next one that is not refused, gone with the socket.
 *
 * The kernel runs the connect hook of a socket under the socket's lock, and most of its changes of state; only close(2)
 * comes at any time, and other sockets that want the same place. So what takes a record away, or gives it to a socket,
 * does that under the record's lock, and a look without it is good for what belongs to a socket that is still held. */
#ifndef CLB_SOCKET_H
#define CLB_SOCKET_H

#include "schedule.h"

#define CLB_PROTOCOL_TCP 6
#define CLB_PROTOCOL_UDP 17

static __always_inline struct clb_socket *clb_place_of(__u64 cookie)
{
	__u32 index = cookie & (CLB_PLACES - 1);

	return clb_lookup(clb_places, &index);
}

/* The record of a socket, 0 where it has none. */
static __always_inline struct clb_socket *clb_record_of(struct bpf_sock *sk, __u64 cookie)
{
	struct clb_socket *place = clb_place_of(cookie);

	if (!place || place->cookie == cookie)
		return place;
	return place->crowded ? clb_of_socket(clb_sockets, sk, 0) : 0;
}

static __always_inline int clb_same_peer(const struct clb_member *member, const __be32 *address, __be16 port)
{
	return member->port && member->port == port && member->address[3] == address[3] &&
	       member->address[0] == address[0] && member->address[1] == address[1] && member->address[2] == address[2];
}

/* Read where a socket was sent, and end its count. Returns 0 where the record is not its any more.
 * With give_back the record is nobody's from here on. */
CLB_FUNCTION int clb_take(struct clb_socket *socket, __u64 cookie, struct clb_sent *sent, int give_back)
{
	struct clb_server *server;
	int is_its;

	bpf_spin_lock(&socket->lock);
	is_its = socket->cookie == cookie;
	if (is_its) {
		sent->member = socket->member;
		sent->began = socket->began;
		sent->started = socket->started;
		sent->server = socket->server;
		sent->priority = socket->priority;
		sent->watched = socket->watched;
		sent->traced = socket->traced;
		sent->active = socket->active;
		socket->active = 0;
		if (give_back) {
			socket->cookie = 0;
			socket->member.port = 0;
		}
	}
	bpf_spin_unlock(&socket->lock);
	if (!is_its)
		return 0;
	server = sent->active ? clb_server_since(&sent->server, sent->began) : 0;
	if (server)
		__sync_fetch_and_add(&server->active, -1);
	return 1;
}

/* Write where a socket is sent, unless the record is another's. Returns whether it is written. */
static __always_inline int clb_fill(struct clb_socket *socket, const struct clb_slot *slot,
				    const struct clb_search *search)
{
	int counts = (search->flags & CLB_COUNT_ACTIVE) != 0, watched = search->eject_after != 0, is_free;
	int is_active = counts && search->vip.protocol == CLB_PROTOCOL_UDP;
	struct clb_server *server = search->server;
	__u64 began = server && (counts || watched) ? clb_began(server) : 0;

	bpf_spin_lock(&socket->lock);
	is_free = !socket->cookie || socket->cookie == search->cookie;
	if (is_free) {
		socket->cookie = search->cookie;
		socket->began = began;
		socket->server = slot->server;
		socket->asked = search->asked;
		socket->priority = slot->priority;
		socket->counts = counts;
		socket->watched = watched;
		socket->traced = 0;
		socket->active = is_active;
		socket->member = slot->member;
	} else {
		socket->crowded = 1;
	}
	bpf_spin_unlock(&socket->lock);
	if (is_free && is_active && server)
		__sync_fetch_and_add(&server->active, 1);
	return is_free;
}

/* Remember where a socket is sent. Returns its record, 0 where there is no memory for one. */
static __always_inline struct clb_socket *clb_remember(struct bpf_sock *sk, const struct clb_slot *slot,
						       const struct clb_search *search)
{
	struct clb_socket *socket = clb_place_of(search->cookie);

	if (socket && clb_fill(socket, slot, search))
		return socket;
	socket = clb_of_socket(clb_sockets, sk, BPF_SK_STORAGE_GET_F_CREATE);
	return socket && clb_fill(socket, slot, search) ? socket : 0;
}

#endif
