// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Programs on the socket hooks of a cgroup. They send a connect(2) or an unconnected datagram to a VIP to a real server
 * of its pool, before the kernel looks at the address. getpeername(2) and recvmsg(2) return the VIP. The outcome of a
 * TCP connect follows from its state changes. No program runs per packet or per message of an established connection.
 */
#include "dialect.h"

#ifndef CLB_BCC
char LICENSE[] SEC("license") = "Dual BSD/GPL";
#endif

#include "context.h"
#include "peers.h"

#define CLB_ECONNREFUSED 111

#define CLB_STEADY_DRAWS 4

enum clb_verdict {
	CLB_DENY = 0,
	CLB_ALLOW = 1,
};

static __always_inline enum clb_verdict clb_refuse(void)
{
#if CLB_CAN_SET_ERRNO
	bpf_set_retval(-CLB_ECONNREFUSED);
#endif
	return CLB_DENY; /* fails with EPERM, unless another errno was set */
}

static __always_inline int clb_is_balanced(const struct bpf_sock_addr *ctx)
{
	return ctx->protocol == CLB_PROTOCOL_TCP || ctx->protocol == CLB_PROTOCOL_UDP;
}

static __always_inline void clb_count(const struct clb_search *search)
{
	struct clb_server *server = search->server;

	if (server)
		__sync_fetch_and_add(&server->connects, 1);
}

/* connect(2). Returns the slot that the socket is sent to; 0 if the address is not a VIP. */
static __always_inline struct clb_slot *clb_connect(struct bpf_sock_addr *ctx, struct clb_search *search)
{
	struct bpf_sock *sk = ctx->sk;
	struct clb_record record;
	struct clb_sent before;
	struct clb_slot *slot;
	int remembered;

	search->asked = search->vip.port;
	search->cookie = bpf_get_socket_cookie(ctx);
	/* No hook sees whether a connected UDP socket ever sends: getaddrinfo(3) connects one to each address to sort
	 * them. So connects of UDP take no turns of round-robin. */
	search->by_chance = search->vip.protocol == CLB_PROTOCOL_UDP;
	slot = clb_is_balanced(ctx) ? clb_schedule(search) : 0;
	if (slot)
		clb_count(search);
	if (slot && clb_refuses(slot)) { /* the record stays: a UDP socket may already be connected */
		if (clb_somebody_listens())
			clb_report_decision(ctx, &slot->member, CLB_EVENT_REFUSED);
		return slot;
	}
	if (sk && clb_find_record(sk, search->cookie, &record))
		clb_take(record.owner, record.socket, search->cookie, &before, 1);
	if (!slot)
		return 0;
	remembered = sk && clb_remember(sk, slot, search, &record);
	if (clb_somebody_listens()) {
		clb_report_decision(ctx, &slot->member, CLB_EVENT_SENT);
		if (remembered)
			record.socket->started = bpf_ktime_get_ns();
	}
	return slot;
}

CLB_PROGRAM("cgroup/connect4")
int clb_connect4(struct bpf_sock_addr *ctx)
{
	struct clb_search search = {};
	struct clb_slot *slot;

	clb_read4(ctx, &search.vip);
	slot = clb_connect(ctx, &search);
	if (!slot)
		return CLB_ALLOW;
	if (clb_refuses(slot))
		return clb_refuse();
	clb_write4(ctx, slot->member.address, slot->member.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/connect6")
int clb_connect6(struct bpf_sock_addr *ctx)
{
	struct clb_search search = {};
	struct clb_slot *slot;

	clb_read6(ctx, &search.vip);
	slot = clb_connect(ctx, &search);
	if (!slot)
		return CLB_ALLOW;
	if (clb_refuses(slot))
		return clb_refuse();
	clb_write6(ctx, slot->member.address, slot->member.port);
	return CLB_ALLOW;
}

/* Whether a socket keeps the server that it was sent to before: as long as that is in the pool and is not ejected.
 * Returns the server, its index, and whether the socket has paused. */
CLB_FUNCTION int clb_goes_on(struct bpf_sock *sk, const struct clb_vip *asked, struct clb_member *server,
			     struct clb_pause *pause)
{
	struct clb_peers *peers = clb_of_socket(clb_peers, sk, 0);
	struct clb_server *known;
	struct clb_peer peer;

	if (!peers || !clb_known_peer(peers, asked, &peer, clb_moment()))
		return 0;
	known = clb_server_since(&peer.server, peer.began);
	if (!known || known->ejected_until)
		return 0;
	*server = peer.member;
	pause->server = peer.server;
	pause->is_over = peer.at >= CLB_PAUSE;
	return 1;
}

/* The slot for a socket without memory for its peers: a function of the socket and of the tier that serves it, so that
 * its datagrams keep going to one server. If CLB_STEADY_DRAWS attempts lead to ejected servers, the drawn slot. */
CLB_FUNCTION struct clb_slot *clb_steady(struct clb_search *search, struct clb_slot *drawn, __u64 cookie)
{
	struct clb_server *server;
	struct clb_slot *slot;
	int draw;

	for (draw = 0; draw < CLB_STEADY_DRAWS; draw++) {
		cookie *= CLB_FILTER_HIGH;
		slot = clb_drawn(search, (cookie >> 32) * search->tier);
		server = slot ? clb_server_of(slot) : 0;
		if (server && !server->ejected_until) {
			search->server = server;
			return slot;
		}
	}
	return drawn;
}

/* Whether a socket is connected through exactly this VIP and port. Returns its server. */
static __always_inline int clb_is_connected_through(struct bpf_sock *sk, __u64 cookie, const struct clb_vip *asked,
						    int ipv6, struct clb_member *server)
{
	struct clb_socket *connection;
	struct clb_vip real;

	if (ipv6)
		clb_read_peer6(sk, &real);
	else
		clb_read_peer4(sk, &real);
	connection = clb_connection(sk, cookie, &real);
	if (!connection || !clb_is_asked(&connection->member, connection->asked, asked))
		return 0;
	*server = connection->member;
	return 1;
}

/* Assign the server of this slot to a socket, or refuse its datagram. Returns the server. */
static __always_inline void clb_begin_to_send(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct clb_search *search,
					      const struct clb_vip *asked, struct clb_slot *slot,
					      struct clb_member *server)
{
	struct clb_peers *peers;
	int refuses = clb_refuses(slot);

	if (!refuses) {
		peers = clb_of_socket(clb_peers, sk, BPF_SK_STORAGE_GET_F_CREATE);
		if (!peers) {
			clb_lose_record();
			clb_give_back_turns(search);
			slot = clb_steady(search, slot, bpf_get_socket_cookie(ctx));
		} else if (search->server) {
			clb_add_peer(peers, asked, slot, clb_began(search->server), clb_moment());
		}
	}
	clb_count(search);
	*server = slot->member;
	if (clb_somebody_listens())
		clb_report_decision(ctx, &slot->member, refuses ? CLB_EVENT_REFUSED : CLB_EVENT_SENT);
}

/* sendto(2) and sendmsg(2) with an address, on UDP. Returns whether server is set; its port is 0 for a refusal. A
 * connected socket receives from its peer alone, so its datagrams to the VIP that it is connected through go there. */
static __always_inline int clb_send(struct bpf_sock_addr *ctx, struct clb_search *search, struct clb_member *server,
				    int ipv6)
{
	struct clb_vip asked = search->vip;
	struct bpf_sock *sk = ctx->sk;
	struct clb_peers *peers;
	struct clb_slot *slot;
	struct clb_pause pause;
	int goes_on;

	if (!sk || !clb_is_balanced(ctx))
		return 0;
	if (sk->state == BPF_TCP_ESTABLISHED &&
	    clb_is_connected_through(sk, bpf_get_socket_cookie(ctx), &asked, ipv6, server))
		return 1;
	goes_on = clb_goes_on(sk, &asked, server, &pause);
	if (goes_on && !pause.is_over)
		return 1;
	slot = clb_schedule(search);
	if (goes_on && !(slot && clb_is_better(search, slot, pause.server, server->vip.port))) {
		clb_give_back_turns(search);
		return 1;
	}
	if (slot) {
		clb_begin_to_send(ctx, sk, search, &asked, slot, server);
		return 1;
	}
	peers = clb_of_socket(clb_peers, sk, 0);
	if (peers)
		clb_sends_direct(peers, &asked);
	return 0;
}

CLB_PROGRAM("cgroup/sendmsg4")
int clb_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct clb_search search = {};
	struct clb_member server = {};

	clb_read4(ctx, &search.vip);
	if (!clb_send(ctx, &search, &server, 0))
		return CLB_ALLOW;
	if (!server.port)
		return clb_refuse();
	clb_write4(ctx, server.address, server.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/sendmsg6")
int clb_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct clb_search search = {};
	struct clb_member server = {};

	clb_read6(ctx, &search.vip);
	if (!clb_send(ctx, &search, &server, 1))
		return CLB_ALLOW;
	if (!server.port)
		return clb_refuse();
	clb_write6(ctx, server.address, server.port);
	return CLB_ALLOW;
}

/* The VIP that an application sees instead of the peer of a connected socket, if the real peer is that of the record.
 * Returns whether there is one. */
static __always_inline int clb_peer_seen_as(struct bpf_sock *sk, __u64 cookie, const struct clb_vip *real,
					    struct clb_vip *vip)
{
	struct clb_socket *connection = sk ? clb_connection(sk, cookie, real) : 0;

	if (!connection)
		return 0;
	*vip = connection->member.vip;
	vip->port = connection->asked;
	return 1;
}

/* The VIP that an application sees instead of the sender of a datagram. Returns whether there is one. */
static __always_inline int clb_sender_seen_as(struct bpf_sock_addr *ctx, const struct clb_vip *real,
					      struct clb_vip *vip)
{
	struct bpf_sock *sk = ctx->sk;
	struct clb_peers *peers;

	if (!sk)
		return 0;
	if (sk->state == BPF_TCP_ESTABLISHED) /* a connected UDP socket is also in this state */
		return clb_peer_seen_as(sk, bpf_get_socket_cookie(ctx), real, vip);
	peers = clb_of_socket(clb_peers, sk, 0);
	return peers && clb_peer_at(peers, real, vip, clb_moment());
}

CLB_PROGRAM("cgroup/recvmsg4")
int clb_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct clb_vip real, vip = {};

	clb_read4(ctx, &real);
	if (clb_sender_seen_as(ctx, &real, &vip))
		clb_write4(ctx, vip.address, vip.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/recvmsg6")
int clb_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct clb_vip real, vip = {};

	clb_read6(ctx, &real);
	if (clb_sender_seen_as(ctx, &real, &vip))
		clb_write6(ctx, vip.address, vip.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/getpeername4")
int clb_getpeername4(struct bpf_sock_addr *ctx)
{
	struct clb_vip real, vip = {};

	clb_read4(ctx, &real);
	if (clb_peer_seen_as(ctx->sk, bpf_get_socket_cookie(ctx), &real, &vip))
		clb_write4(ctx, vip.address, vip.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/getpeername6")
int clb_getpeername6(struct bpf_sock_addr *ctx)
{
	struct clb_vip real, vip = {};

	clb_read6(ctx, &real);
	if (clb_peer_seen_as(ctx->sk, bpf_get_socket_cookie(ctx), &real, &vip))
		clb_write6(ctx, vip.address, vip.port);
	return CLB_ALLOW;
}

/* The SYN of a TCP connect is sent: follow its state changes, if anything needs them. */
static __always_inline void clb_leaves(struct bpf_sock_ops *ctx, const struct clb_record *record, __u64 cookie)
{
	const struct clb_socket *socket = record->socket;

	if (!(socket->counts || socket->watched || socket->started))
		return;
	clb_count_in(record, cookie);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void clb_arrives(struct clb_socket *socket, __u64 cookie)
{
	struct clb_server *server = socket->watched ? clb_server_since(&socket->server, socket->began) : 0;

	if (server)
		clb_succeeded(server);
	if (socket->started) {
		clb_report_outcome(cookie, &socket->member, socket->started, CLB_EVENT_ESTABLISHED);
		socket->started = 0;
	}
}

/* Whether the other end has ended a connect: by a refusal, an ICMP error, or silence up to the last timer. In these
 * cases the kernel empties the queue of sent segments before it changes the state. It changes the state first if the
 * application gives up (shutdown, connect to AF_UNSPEC, an MPTCP close), and for ICMP before tcp_done_with_error (6.11
 * and stable kernels). If the connect failed on this host, because of a missing port, route or memory, no segment was
 * sent: the kernel counts from zero at each connect of a socket. It also counts segments that a filter of this host
 * has dropped; but a dropped retransmission is not in flight (retrans_out), and then silence is not the fault of the
 * server. */
static __always_inline int clb_peer_ended(const struct bpf_sock_ops *ctx)
{
	int has_left = ctx->retrans_out || !ctx->total_retrans;

	return ctx->segs_out && !ctx->packets_out && (has_left || ctx->segs_in);
}

/* A connect ended before it was established, without a close by the application. */
CLB_FUNCTION int clb_fails(const struct clb_sent *sent, __u64 cookie, int peer_ended)
{
	if (sent->started)
		clb_report_outcome(cookie, &sent->member, sent->started,
				   peer_ended ? CLB_EVENT_FAILED : CLB_EVENT_GIVEN_UP);
	if (peer_ended && sent->watched && clb_failed(sent) && sent->started)
		clb_report_outcome(cookie, &sent->member, sent->started, CLB_EVENT_EJECTED);
	return 0;
}

/* After TCP_CLOSE there is nothing left to follow. For the kernel's own sockets it is the only end that we see. */
static __always_inline void clb_changes_state(struct bpf_sock_ops *ctx, const struct clb_record *record, __u64 cookie)
{
	__u32 before = ctx->args[0], after = ctx->args[1];
	struct clb_sent sent;

	if (after == BPF_TCP_SYN_RECV) /* simultaneous connect of both ends */
		return;
	if (after == BPF_TCP_ESTABLISHED)
		clb_arrives(record->socket, cookie);
	else if (clb_take(record->owner, record->socket, cookie, &sent, after == BPF_TCP_CLOSE) &&
		 after == BPF_TCP_CLOSE && (before == BPF_TCP_SYN_SENT || before == BPF_TCP_SYN_RECV))
		clb_fails(&sent, cookie, clb_peer_ended(ctx));
}

CLB_PROGRAM("sockops")
int clb_sock_ops(struct bpf_sock_ops *ctx)
{
	struct clb_record record;
	struct bpf_sock *sk;
	__u64 cookie;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	sk = ctx->sk;
	cookie = bpf_get_socket_cookie(ctx);
	if (!sk || !clb_find_record(sk, cookie, &record))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		clb_leaves(ctx, &record, cookie);
	else
		clb_changes_state(ctx, &record, cookie);
	return 1;
}

/* The last close(2) of the socket, or the end of its process; before the final states of TCP. */
CLB_PROGRAM("cgroup/sock_release")
int clb_sock_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct clb_record record;
	struct clb_sent sent;

	if (clb_find_record(ctx, cookie, &record) && clb_take(record.owner, record.socket, cookie, &sent, 1) &&
	    sent.started && sent.member.vip.protocol == CLB_PROTOCOL_TCP)
		clb_report_outcome(cookie, &sent.member, sent.started, CLB_EVENT_GIVEN_UP);
	return CLB_ALLOW;
}
