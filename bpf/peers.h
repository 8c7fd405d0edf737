/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The peers of an unconnected UDP socket. */
#ifndef CLB_PEERS_H
#define CLB_PEERS_H

#include "socket.h"

/* Find the real server that the socket sends to for this VIP and port. Returns whether there is one. */
CLB_FUNCTION int clb_known_peer(struct clb_peers *peers, const struct clb_vip *asked, struct clb_member *found)
{
	int index;

	found->port = 0;
	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		if (peer->member.port && peer->asked == asked->port &&
		    peer->member.vip.address[3] == asked->address[3] &&
		    peer->member.vip.address[0] == asked->address[0] &&
		    peer->member.vip.address[1] == asked->address[1] &&
		    peer->member.vip.address[2] == asked->address[2])
			*found = peer->member;
	}
	bpf_spin_unlock(&peers->lock);
	return found->port != 0;
}

/* Take up a peer, in the place of an older one for the same VIP and port, else of the oldest. */
CLB_FUNCTION int clb_add_peer(struct clb_peers *peers, const struct clb_vip *asked, const struct clb_member *member)
{
	__u32 place, index;

	bpf_spin_lock(&peers->lock);
	place = peers->next % CLB_PEERS;
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		if (peer->asked == asked->port && peer->member.port && clb_same_vip(&peer->member.vip, &member->vip))
			place = index;
	}
	if (place == peers->next % CLB_PEERS)
		peers->next++;
	peers->peer[place & (CLB_PEERS - 1)].member = *member;
	peers->peer[place & (CLB_PEERS - 1)].asked = asked->port;
	bpf_spin_unlock(&peers->lock);
	return 0;
}

/* Find the VIP and port that a datagram from this address is seen as coming from. Returns whether there is one. */
CLB_FUNCTION int clb_peer_at(struct clb_peers *peers, const struct clb_vip *from, struct clb_vip *vip)
{
	int index, found = 0;

	bpf_spin_lock(&peers->lock);
	for (index = 0; index < CLB_PEERS; index++) {
		struct clb_peer *peer = &peers->peer[index];

		if (clb_same_peer(&peer->member, from->address, from->port)) {
			*vip = peer->member.vip;
			vip->port = peer->asked;
			found = 1;
		}
	}
	bpf_spin_unlock(&peers->lock);
	return found;
}

#endif
