/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The peers of an unconnected UDP socket. */
#ifndef CLB_PEERS_H
#define CLB_PEERS_H

#include "socket.h"

/* A socket that has been silent for this long can change its server: 5 s. */
#define CLB_PAUSE 4768

/* The last datagram of a socket to the same VIP. */
struct clb_last {
	__u32 began;  /* as in clb_peer */
	__u32 server; /* index of its server */
	__u32 since;  /* time since then, in the unit of clb_peer.at */
};

/* The time in the unit of clb_peer.at. It wraps around after 52 days. */
static __always_inline __u32 clb_moment(void)
{
	return bpf_ktime_get_ns() >> 20;
}

/* Find the peer for this VIP and port. Returns whether there is one. */
CLB_FUNCTION int clb_known_peer(struct clb_peers *peers, const struct clb_vip *asked, struct clb_member *server,
				struct clb_last *last)
{
	__u32 now = clb_moment();
	int index, found = 0;

	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		if (clb_is_asked(&peer->member, peer->asked, asked)) {
			peer->direct = 0;
			peer->used = ++peers->uses;
			*server = peer->member;
			last->began = peer->began;
			last->server = peer->server;
			last->since = now - peer->at;
			peer->at = now;
			found = 1;
		}
	}
	bpf_spin_unlock(&peers->lock);
	return found;
}

/* Add a peer: it replaces an older one for the same VIP and port, else a free one, else the least recently used one. */
CLB_FUNCTION int clb_add_peer(struct clb_peers *peers, const struct clb_vip *asked, const struct clb_member *member,
			      __u32 server, __u32 began)
{
	__u32 place = 0, oldest = 0, now = clb_moment(), index;
	struct clb_peer *peer;

	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		__u32 age;

		peer = &peers->peer[index];
		age = peers->uses - peer->used;
		if (!peer->member.port)
			age = 0xfffffffe;
		if (clb_is_asked(&peer->member, peer->asked, asked))
			age = 0xffffffff;
		if (age >= oldest) {
			oldest = age;
			place = index;
		}
	}
	peer = &peers->peer[place & (CLB_PEERS - 1)];
	peer->began = began;
	peer->server = server;
	peer->member = *member;
	peer->asked = asked->port;
	peer->direct = 0;
	peer->used = ++peers->uses;
	peer->at = now;
	bpf_spin_unlock(&peers->lock);
	return 0;
}

/* The socket sends to the own address of a real server: until it sends to the VIP again, replies are not rewritten. */
CLB_FUNCTION int clb_sends_direct(struct clb_peers *peers, const struct clb_vip *to)
{
	int index;

	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		if (clb_same_peer(&peer->member, to->address, to->port))
			peer->direct = 1;
	}
	bpf_spin_unlock(&peers->lock);
	return 0;
}

/* Find the VIP and port that the application sees as the sender of a datagram from this address: of several with that
 * real server, the last one that it sent to. Returns whether there is one. */
CLB_FUNCTION int clb_peer_at(struct clb_peers *peers, const struct clb_vip *from, struct clb_vip *vip, __u32 now)
{
	__u32 youngest = 0xffffffff, place = 0, index, age;
	int found = 0;

	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		age = peers->uses - peer->used;
		if (age <= youngest && !peer->direct && clb_same_peer(&peer->member, from->address, from->port)) {
			youngest = age;
			place = index;
			*vip = peer->member.vip;
			vip->port = peer->asked;
			found = 1;
		}
	}
	if (found)
		peers->peer[place & (CLB_PEERS - 1)].at = now;
	bpf_spin_unlock(&peers->lock);
	return found;
}

#if CLB_CAN_LOOP
/* Most rows of a tier that are searched for a server. */
#define CLB_LOOKED CLB_MAX_ROWS
#else
#define CLB_LOOKED 8
#endif

/* A walk over the rows of a tier to find a server. */
struct clb_lookout {
	__u64 generation;
	__u32 from;
	__u32 first; /* first slot of the tier */
	__u32 server;
	__u32 found; /* not 0: it was found */
};

static long clb_look_for_server(__u32 turn, struct clb_lookout *lookout)
{
	struct clb_row *row = clb_next_row(lookout->generation, lookout->from, lookout->first + turn * CLB_ROW);
	const struct clb_slot *slot;
	__u32 column;

	if (!row)
		return 1;
	for (column = 0; column < CLB_ROW; column++) {
		slot = &row->slot[column];
		if (slot->out_of && !((slot->first ^ lookout->first) | (slot->server ^ lookout->server)))
			__sync_fetch_and_add(&lookout->found, 1);
	}
	return 0;
}

/* Whether the choice is in a better tier than a server of the virtual server with this port. If the tier has too many
 * rows to search for that server, it counts as found, and the socket keeps its server. */
CLB_FUNCTION int clb_is_better(const struct clb_request *request, __u32 server, __be16 port)
{
	__u32 first = request->search.first, tier = request->search.tier;
	__u32 rows = (first + tier - 1) / CLB_ROW - first / CLB_ROW + 1;
	const struct clb_virtual *pool = request->search.pool;
	struct clb_lookout lookout = {
		.generation = pool->generation,
		.from = pool->row,
		.first = first,
		.server = server,
	};

	if (!request->to.port || pool->vip.port != port || tier >= pool->servers || rows > CLB_LOOKED)
		return 0;
	clb_for_each(rows, CLB_LOOKED, clb_look_for_server, &lookout);
	return !lookout.found;
}

#endif
