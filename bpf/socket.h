/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of a connected socket: made at connect, cleared at the next one that is not refused, freed with the socket. */
#ifndef CLB_SOCKET_H
#define CLB_SOCKET_H

#include "schedule.h"

#define CLB_PROTOCOL_TCP 6
#define CLB_PROTOCOL_UDP 17

/* When a server was first sent a connection. It tells the server from an earlier one of the same member, which has been
 * removed since, and whose connections were never added to this one's. */
static __always_inline __u64 clb_began(struct clb_server *server)
{
	__u64 now;

	if (!server->began) {
		now = bpf_ktime_get_ns();
		bpf_spin_lock(&server->lock);
		if (!server->began)
			server->began = now;
		bpf_spin_unlock(&server->lock);
	}
	return server->began;
}

/* Change the count of the server that began then. Returns whether it is still there. */
static __always_inline int clb_add_active(const struct clb_member *member, __u64 began, int change)
{
	struct clb_server *server = clb_lookup(clb_servers, member);

	if (!server || server->began != began)
		return 0;
	__sync_fetch_and_add(&server->active, change);
	return 1;
}

static __always_inline int clb_same_peer(const struct clb_member *member, const __be32 *address, __be16 port)
{
	return member->port && member->port == port && member->address[3] == address[3] &&
	       member->address[0] == address[0] && member->address[1] == address[1] && member->address[2] == address[2];
}

/* Forget where a socket was sent, because it connects anew or is closed. Of a UDP socket this also ends its count, which
 * for TCP the state of the connection does. */
CLB_FUNCTION int clb_forget(struct clb_socket *socket)
{
	struct clb_member old;
	int was_active = 0;
	__u64 began;

	bpf_spin_lock(&socket->lock);
	old = socket->member;
	began = socket->began;
	if (old.vip.protocol == CLB_PROTOCOL_UDP) {
		was_active = socket->active;
		socket->active = 0;
	}
	socket->member.port = 0;
	bpf_spin_unlock(&socket->lock);
	if (was_active)
		clb_add_active(&old, began, -1);
	return 0;
}

/* Remember where a socket is sent. */
CLB_FUNCTION int clb_remember(struct clb_socket *socket, const struct clb_slot *slot, struct clb_server *server,
			      const struct clb_search *search, __be16 asked)
{
	int counts = server && (search->flags & CLB_COUNT_ACTIVE);
	__u64 began = server && counts ? clb_began(server) : 0;
	int is_udp = search->vip.protocol == CLB_PROTOCOL_UDP;

	bpf_spin_lock(&socket->lock);
	socket->member = slot->member;
	socket->began = began;
	socket->asked = asked;
	socket->priority = slot->priority;
	socket->counts = counts;
	socket->watched = search->eject_after != 0;
	socket->closing = 0;
	socket->traced = 0;
	socket->active = is_udp && counts;
	bpf_spin_unlock(&socket->lock);
	if (server && counts && is_udp)
		__sync_fetch_and_add(&server->active, 1);
	return 0;
}

#endif
