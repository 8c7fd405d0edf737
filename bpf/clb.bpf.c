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
#include "limits.h"
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

static __always_inline void clb_count(const struct clb_request *request)
{
	struct clb_server *server = request->server;

	if (server)
		__sync_fetch_and_add(&server->connects, 1);
}

/* Whether something needs to know how TCP connects to a pool go on; see needs_outcomes in Python. */
static __always_inline int clb_is_followed(const struct clb_request *request)
{
	const struct clb_virtual *pool = request->search.pool;

	return pool->flags & CLB_COUNT_ACTIVE || clb_is_watched(request) || pool->connect_timeout_ms ||
	       pool->dead_after_ms;
}

/* Whether no program sees the end of a TCP socket: nothing follows its state, and it is one of the kernel's own, which
 * has no close(2). It gets no record, because its place would be lost. */
static __always_inline int clb_is_unseen(struct bpf_sock *sk, const struct clb_request *request)
{
	return CLB_CAN_READ_KERNEL && !clb_is_followed(request) && request->asked.protocol == CLB_PROTOCOL_TCP &&
	       clb_is_of_kernel(sk);
}

/* What becomes of a connect. */
enum clb_way {
	CLB_DIRECT,  /* it is not to a VIP */
	CLB_SENT,    /* it goes to the choice */
	CLB_REFUSED, /* the pool is empty */
};

/* connect(2) to what may be a VIP.
 *
 * hash is that of the address. */
CLB_HOT enum clb_way clb_connect(struct bpf_sock_addr *ctx, struct clb_request *request, __u64 hash)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct clb_record record = {};
	int found, remembered = 0;

	request->search.turns = 0;
	/* No hook sees whether a connected UDP socket ever sends: getaddrinfo(3) connects one to each address to sort
	 * them. So connects of UDP take no turns of round-robin. */
	request->search.by_chance = request->asked.protocol == CLB_PROTOCOL_UDP;
	found = clb_is_balanced(ctx) && clb_schedule(ctx, request, hash);
	if (found)
		clb_count(request);
	if (found && !request->to.port) { /* the record stays: a UDP socket may already be connected */
		if (clb_somebody_listens())
			clb_report_decision(ctx, request, CLB_EVENT_REFUSED);
		clb_learn_home(ctx, cookie);
		return CLB_REFUSED;
	}
	if (sk && clb_find_bucket(cookie, &record)) {
		if (clb_find_in_bucket(sk, cookie, &record))
			clb_release(&record, cookie);
		if (found && !clb_is_unseen(sk, request))
			remembered = clb_remember(sk, cookie, request, &record);
	}
	if (!found)
		return CLB_DIRECT;
	if (clb_somebody_listens()) {
		clb_report_decision(ctx, request, CLB_EVENT_SENT);
		if (remembered)
			record.socket->started = bpf_ktime_get_ns();
	}
	return CLB_SENT;
}

/* connect(2) to another address: release the record of an earlier connect of the socket. */
CLB_FUNCTION int clb_connects_directly(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct clb_record record = {};

	if (sk && clb_find_record(sk, cookie, &record))
		clb_release(&record, cookie);
	return 0;
}

/* Whether a socket may have a record of an earlier connect. A TCP socket keeps the address of its last peer. */
static __always_inline int clb_was_connected(const struct bpf_sock_addr *ctx, int ipv6)
{
	const struct bpf_sock *sk = ctx->sk;

	if (!sk || ctx->protocol != CLB_PROTOCOL_TCP)
		return 1;
	return ipv6 ? sk->dst_ip6[3] | sk->dst_ip6[0] : sk->dst_ip4;
}

CLB_PROGRAM("cgroup/connect4")
int clb_connect4(struct bpf_sock_addr *ctx)
{
	struct clb_request request;
	enum clb_way way;
	__u64 hash;

	clb_read4(ctx, &request.asked);
	hash = clb_hash(request.asked.address);
	if (!clb_may_be_vip(hash)) {
		if (clb_was_connected(ctx, 0))
			clb_connects_directly(ctx);
		return CLB_ALLOW;
	}
	way = clb_connect(ctx, &request, hash);
	if (way == CLB_REFUSED)
		return clb_refuse();
	if (way == CLB_SENT)
		clb_write4(ctx, request.to.address, request.to.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/connect6")
int clb_connect6(struct bpf_sock_addr *ctx)
{
	struct clb_request request;
	enum clb_way way;
	__u64 hash;

	clb_read6(ctx, &request.asked);
	hash = clb_hash(request.asked.address);
	if (!clb_may_be_vip(hash)) {
		if (clb_was_connected(ctx, 1))
			clb_connects_directly(ctx);
		return CLB_ALLOW;
	}
	way = clb_connect(ctx, &request, hash);
	if (way == CLB_REFUSED)
		return clb_refuse();
	if (way == CLB_SENT)
		clb_write6(ctx, request.to.address, request.to.port);
	return CLB_ALLOW;
}

/* Whether a socket keeps the server that it was sent to before: as long as that is in the pool and is not ejected.
 * Returns the server, and when it was sent there. */
CLB_FUNCTION int clb_goes_on(struct bpf_sock *sk, const struct clb_vip *asked, struct clb_member *server,
			     struct clb_last *last)
{
	struct clb_peers *peers = clb_of_socket(clb_peers, sk, 0);
	struct clb_server *known;

	if (!peers || !clb_known_peer(peers, asked, server, last))
		return 0;
	known = clb_server_since(&last->server, last->began);
	/* Its pool is not known here, and may be steered. */
	return known && !clb_is_out(known, &last->server, ~0ULL, ~0ULL);
}

/* Choose for a socket without memory for its peers: by a function of the socket and of the tier that serves it, so that
 * its datagrams keep going to one server. If CLB_STEADY_DRAWS attempts lead to ejected servers, the choice stays. */
CLB_FUNCTION int clb_choose_steadily(struct clb_request *request, __u64 cookie)
{
	__u64 draw = 0;
	struct clb_server *server;
	struct clb_slot *slot;

	do {
		cookie *= CLB_FILTER_HIGH;
		slot = clb_drawn(&request->search, (cookie >> 32) * request->search.tier);
		server = slot ? clb_server_of(slot) : 0;
		if (server && !clb_is_out(server, &slot->server, clb_is_steered(request->search.pool), ~0ULL))
			return clb_choose(request, slot);
		clb_opaque(cookie);
		draw++;
		clb_opaque(draw); /* so that the turn ends with a jump, see clb_half_stays */
	} while (draw < CLB_STEADY_DRAWS);
	return 0;
}

/* Whether a socket with this real peer is connected through exactly this VIP and port. Returns its server. */
CLB_FUNCTION int clb_is_connected_through(struct bpf_sock *sk, __u64 cookie, const struct clb_vip *real,
					  const struct clb_vip *asked, struct clb_member *server)
{
	struct clb_socket *connection = clb_connection(sk, cookie, real);

	if (!connection || !clb_is_asked(&connection->member, connection->asked, asked))
		return 0;
	*server = connection->member;
	return 1;
}

/* Assign the chosen server to a socket, or refuse its datagram. Returns the server. */
CLB_FUNCTION int clb_begin_to_send(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct clb_request *request,
				   struct clb_member *server)
{
	struct clb_peers *peers;
	int refuses = !request->to.port;

	clb_name(request, server);
	if (!refuses) {
		peers = clb_of_socket(clb_peers, sk, BPF_SK_STORAGE_GET_F_CREATE);
		if (!peers) {
			clb_lose_record();
			clb_give_back_turns(&request->search);
			clb_choose_steadily(request, bpf_get_socket_cookie(ctx));
			clb_name(request, server);
		} else if (request->server) {
			clb_add_peer(peers, &request->asked, server, request->to.server, clb_began(request->server));
		}
	}
	clb_count(request);
	if (clb_somebody_listens())
		clb_report_decision(ctx, request, refuses ? CLB_EVENT_REFUSED : CLB_EVENT_SENT);
	return 0;
}

/* sendto(2) and sendmsg(2) with an address, on UDP. Returns whether server is set; its port is 0 for a refusal. A
 * connected socket receives from its peer alone, so its datagrams to the VIP that it is connected through go there. */
static __always_inline int clb_send(struct bpf_sock_addr *ctx, struct clb_request *request, struct clb_member *server,
				    int ipv6)
{
	__u64 hash = clb_hash(request->asked.address);
	struct bpf_sock *sk = ctx->sk;
	struct clb_peers *peers;
	struct clb_last last = {};
	int goes_on, found;

	if (!sk || !clb_is_balanced(ctx))
		return 0;
	if (sk->state == BPF_TCP_ESTABLISHED) {
		if (ipv6) /* into memory that is free until then: 5.10 has just enough */
			clb_read_peer6(sk, &server->vip);
		else
			clb_read_peer4(sk, &server->vip);
		if (clb_is_connected_through(sk, bpf_get_socket_cookie(ctx), &server->vip, &request->asked, server))
			return 1;
	}
	goes_on = clb_goes_on(sk, &request->asked, server, &last);
	clb_forget(goes_on); /* otherwise the verifier follows all that comes next for each of its values */
	if (goes_on && last.since < CLB_PAUSE)
		return 1;
	found = clb_may_be_vip(hash) && clb_schedule(ctx, request, hash);
	if (goes_on && !(found && clb_is_better(request, last.server, server->vip.port))) {
		clb_give_back_turns(&request->search);
		return 1;
	}
	if (found) {
		clb_begin_to_send(ctx, sk, request, server);
		return 1;
	}
	peers = clb_of_socket(clb_peers, sk, 0);
	if (peers)
		clb_sends_direct(peers, &request->asked);
	return 0;
}

CLB_PROGRAM("cgroup/sendmsg4")
int clb_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct clb_request request = {};
	struct clb_member server = {};

	clb_read4(ctx, &request.asked);
	if (!clb_send(ctx, &request, &server, 0))
		return CLB_ALLOW;
	if (!server.port)
		return clb_refuse();
	clb_write4(ctx, server.address, server.port);
	return CLB_ALLOW;
}

CLB_PROGRAM("cgroup/sendmsg6")
int clb_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct clb_request request = {};
	struct clb_member server = {};

	clb_read6(ctx, &request.asked);
	if (!clb_send(ctx, &request, &server, 1))
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

/* Whether the peer of a TCP socket is this member. */
static __always_inline int clb_is_peer(const struct bpf_sock *sk, const struct clb_member *member)
{
	__be32 address = member->address[3];

	return member->port == (__be16)sk->dst_port && (address == sk->dst_ip4 || address == sk->dst_ip6[3]);
}

/* What follows a connect: its changes of state, and the timers that run out before an answer. */
#define CLB_FOLLOWS (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG)

/* A TCP connect is about to send its SYN: follow its state changes, if anything needs them. Returns 0 if the record is that
 * of an earlier connect, and released. */
static __always_inline int clb_leaves(struct bpf_sock_ops *ctx, const struct bpf_sock *sk,
				      const struct clb_record *record, __u64 cookie)
{
	struct clb_socket *socket = record->socket;
	int missing;

	if (!clb_is_peer(sk, &socket->member)) { /* it is a direct connect, after one that failed at once */
		clb_release(record, cookie);
		return 0;
	}
	if (!(socket->counts || socket->watched || socket->started || socket->connect_timeout_ms ||
	      socket->dead_after_ms))
		return 1;
	socket->at = clb_ticks();
	clb_count_in(record, cookie);
	missing = CLB_FOLLOWS & ~ctx->bpf_sock_ops_cb_flags;
	if (missing) {
		socket->follows = missing;
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | CLB_FOLLOWS);
	}
	return 1;
}

static __always_inline void clb_arrives(struct bpf_sock_ops *ctx, struct clb_socket *socket, __u64 cookie)
{
	struct clb_server *server = socket->watched ? clb_server_since(&socket->server, socket->began) : 0;

	if (server)
		clb_succeeded(ctx, server, socket->server);
	if (socket->started) {
		clb_report_outcome(cookie, &socket->member, socket->started, CLB_EVENT_ESTABLISHED, CLB_CAUSE_NONE);
		socket->started = 0;
	}
}

/* Why a connect ended; CLB_CAUSE_SILENT if the application gave it up.
 *
 * If the other end ends a connect, by a refusal or an ICMP error, or if the last timer runs out, the kernel empties the
 * queue of sent segments before it changes the state. It changes the state first if the application gives up (shutdown,
 * connect to AF_UNSPEC, an MPTCP close), and for ICMP before tcp_done_with_error (6.11 and stable kernels). If the
 * connect failed on this host, because of a missing port, route or memory, no segment was sent: the kernel counts from
 * zero at each connect of a socket. It also counts segments that a filter of this host has dropped; but a dropped
 * retransmission is not in flight (retrans_out), and then silence is not the fault of the server; see clb_is_kept. */
static __always_inline __u32 clb_cause_of(const struct bpf_sock_ops *ctx, const struct clb_socket *socket)
{
	int has_left = ctx->retrans_out || !ctx->total_retrans;

	if (!ctx->segs_out || !(has_left || (ctx->segs_in && !ctx->packets_out)))
		return CLB_CAUSE_NONE;
	if (ctx->packets_out)
		return CLB_CAUSE_SILENT;
	if (socket->expired)
		return socket->at ? CLB_CAUSE_TIMED_OUT : CLB_CAUSE_NONE;
	if (ctx->segs_in)
		return CLB_CAUSE_REFUSED;
	return ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTO_CB_FLAG ? CLB_CAUSE_UNREACHABLE : CLB_CAUSE_UNKNOWN;
}

/* Release the record of a TCP connect that ends before it is established. */
static __always_inline void clb_finish(void *ctx, const struct clb_record *record, __u64 cookie, __u32 cause)
{
	int is_judge = cause && clb_is_judge(ctx);
	struct clb_sent sent;

	if (!clb_take(record, cookie, &sent))
		return;
	if (!is_judge)
		sent.watched = 0;
	clb_ended_early(&sent, cookie, cause);
}

/* A followed socket is closed, but not by close(2). If it was never established, its connect has ended early. */
CLB_HOT int clb_ends(struct bpf_sock_ops *ctx, const struct clb_record *record, __u64 cookie, __u32 before)
{
	if (before == BPF_TCP_SYN_SENT || before == BPF_TCP_SYN_RECV)
		clb_finish(ctx, record, cookie, clb_cause_of(ctx, record->socket));
	else
		clb_release(record, cookie);
	return 0;
}

/* The kernel asks how long the first timer of a SYN is: before it sends a SYN, and again as each of its timers runs out. The
 * first question is where a connect begins for us, so that one look-up of its record is enough. Requests for incoming
 * connections are asked about, too; they have no socket. */
CLB_HOT int clb_sets_timer(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct clb_record record = {};
	__u64 cookie;

	if (!sk)
		return 0;
	cookie = clb_cookie_of(ctx, sk);
	if (!cookie || !clb_find_record(sk, cookie, &record))
		return 0;
	if (!ctx->packets_out && !clb_leaves(ctx, sk, &record, cookie))
		return 0;
	if (record.socket->connect_timeout_ms)
		ctx->reply = clb_timers_of(record.socket->connect_timeout_ms).first;
	return 0;
}

/* Whether the last repetition of a SYN has not left this host, for a reason of its own: a filter has dropped it, or there
 * was no route. The kernel has counted it (total_retrans) before a filter sees it. It has not if there is no route, nor
 * while the previous SYN waits here for the link address of a neighbour: that one is the server, and does not answer. */
static __always_inline int clb_is_kept(const struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	return ctx->args[0] && !ctx->retrans_out && (ctx->total_retrans || clb_lacks_route(sk));
}

/* A timer of an unanswered SYN has run out. */
CLB_FUNCTION int clb_waits(struct bpf_sock_ops *ctx)
{
	int repeated = ctx->args[0], expired = ctx->args[2];
	struct bpf_sock *sk = ctx->sk;
	struct clb_record record = {};
	struct clb_sent sent;
	__u64 cookie;

	if (ctx->state != BPF_TCP_SYN_SENT || !sk)
		return 0;
	cookie = clb_cookie_of(ctx, sk);
	if (!cookie || !clb_find_record(sk, cookie, &record))
		return 0;
	if (expired)
		record.socket->expired = 1;
	else if (record.socket->connect_timeout_ms)
		clb_bring_forward(ctx, record.socket, repeated);
	if (clb_is_kept(ctx, sk))
		record.socket->at = 0;
	if (expired || !record.socket->watched || !clb_is_judge(ctx))
		return 0;
	clb_copy(record.socket, &sent);
	clb_doubt(&sent);
	return 0;
}

/* Remove the flags that we have set on a socket in this state; see clb_changes_state. */
static __always_inline void clb_follows_no_longer(struct bpf_sock_ops *ctx, __u32 follows, int is_followed_on)
{
	if (is_followed_on)
		follows &= BPF_SOCK_OPS_RTO_CB_FLAG;
	if (follows)
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~follows);
}

/* Once a connection is established, close(2) is what ends it for us, and its states are of no interest: each one would
 * cost a run of this program. The kernel's own sockets have no close(2), so they are followed to TCP_CLOSE. */
CLB_HOT int clb_changes_state(struct bpf_sock_ops *ctx)
{
	__u32 before = ctx->args[0], after = ctx->args[1], follows;
	struct bpf_sock *sk = ctx->sk;
	struct clb_record record = {};
	__u64 cookie;
	int is_of_kernel = 0;

	if ((after != BPF_TCP_ESTABLISHED && after != BPF_TCP_CLOSE) || !sk)
		return 0;
	cookie = clb_identify(ctx, sk, &is_of_kernel);
	if (!cookie || !clb_find_record(sk, cookie, &record))
		return 0;
	follows = record.socket->follows;
	clb_restore(ctx, record.socket);
	if (after == BPF_TCP_CLOSE) {
		clb_ends(ctx, &record, cookie, before);
	} else {
		if (record.socket->dead_after_ms)
			clb_guard(ctx, record.socket->dead_after_ms);
		clb_arrives(ctx, record.socket, cookie);
	}
	clb_follows_no_longer(ctx, follows, is_of_kernel && after != BPF_TCP_CLOSE);
	return 0;
}

CLB_PROGRAM("sockops")
int clb_sock_ops(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TIMEOUT_INIT)
		clb_sets_timer(ctx);
	else if (ctx->op == BPF_SOCK_OPS_STATE_CB)
		clb_changes_state(ctx);
	else if (ctx->op == BPF_SOCK_OPS_RTO_CB)
		clb_waits(ctx);
	return 1;
}

/* A connect is given up by close(2), before it was established. */
CLB_FUNCTION int clb_gives_up(struct bpf_sock *ctx, const struct clb_record *record, __u64 cookie, __u32 cause)
{
	if (record->socket->member.vip.protocol == CLB_PROTOCOL_TCP)
		clb_finish(ctx, record, cookie, cause);
	else
		clb_release(record, cookie);
	return 0;
}

/* The last close(2) of the socket, or the end of its process; before the final states of TCP. */
CLB_PROGRAM("cgroup/sock_release")
int clb_sock_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct clb_record record = {};

	if (!clb_find_record(ctx, cookie, &record))
		return CLB_ALLOW;
	if (ctx->state == BPF_TCP_SYN_SENT)
		clb_gives_up(ctx, &record, cookie, CLB_CAUSE_SILENT);
	else if (record.socket->started)
		clb_gives_up(ctx, &record, cookie, CLB_CAUSE_NONE);
	else
		clb_release(&record, cookie);
	return CLB_ALLOW;
}
