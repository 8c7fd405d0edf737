/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The peers of an unconnected UDP socket. */
#ifndef CLB_PEERS_H
#define CLB_PEERS_H

#include "socket.h"

/* Find the real server that the socket sends to for this VIP and port. Returns whether there is one. */
CLB_FUNCTION int clb_known_peer(struct clb_peers *peers, const struct clb_vip *asked, struct clb_peer *found)
{
	int index;

	found->member.port = 0;
	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		if (clb_is_asked(&peer->member, peer->asked, asked)) {
			peer->direct = 0;
			peer->used = ++peers->uses;
			*found = *peer;
		}
	}
	bpf_spin_unlock(&peers->lock);
	return found->member.port != 0;
}

/* Take up a peer: in the place of an older one for the same VIP and port, else in a free one, else of the one whose last
 * use is longest ago. */
CLB_FUNCTION int clb_add_peer(struct clb_peers *peers, const struct clb_vip *asked, const struct clb_slot *slot,
			      __u64 began)
{
	__u32 place = 0, oldest = 0, index;
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
	peer->server = slot->server;
	peer->member = slot->member;
	peer->asked = asked->port;
	peer->direct = 0;
	peer->used = ++peers->uses;
	bpf_spin_unlock(&peers->lock);
	return 0;
}

/* The socket sends to a real server by its own address: until it asks the VIP again, what comes from there is left alone. */
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

/* Find the VIP and port that a datagram from this address is seen as coming from: of several with that real server, the
 * one that was asked last. Returns whether there is one. */
CLB_FUNCTION int clb_peer_at(struct clb_peers *peers, const struct clb_vip *from, struct clb_vip *vip)
{
	__u32 youngest = 0xffffffff, age;
	int index, found = 0;

	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		age = peers->uses - peer->used;
		if (age <= youngest && !peer->direct && clb_same_peer(&peer->member, from->address, from->port)) {
			youngest = age;
			*vip = peer->member.vip;
			vip->port = peer->asked;
			found = 1;
		}
	}
	bpf_spin_unlock(&peers->lock);
	return found;
}

#endif
