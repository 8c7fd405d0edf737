"""The result of getpeername(2), also after another connect of the socket."""

from __future__ import annotations

from tests.support.moody import moody_servers
from tests.support.plane import Plane, virtual_server
from tests.support.sockets import outcome
from tests.support.tellers import tellers
from tests.support.transparency import (
    COUNTED,
    PORT,
    Side,
    as_seen_by,
    ask,
    ask_at,
    ask_at_peer,
    dissolve,
    error_of,
    names,
    peer,
)


def test_peer_of_a_connected_socket_is_the_vip(plane: Plane, side: Side, udp: bool) -> None:
    """A connected socket's peer is the VIP and port that it connected to, in the same form."""
    with tellers(side.real, udp=udp) as servers:
        plane.publish(virtual_server(side.at(PORT, udp=udp), names(servers)))
        (sock,) = plane.client.connected(side.target(PORT), udp=udp)
        assert peer(sock) == side.target(PORT)
        assert ask(sock) == servers[0].name


def test_peer_behind_a_wildcard_has_the_port_of_the_connect(plane: Plane, side: Side, udp: bool) -> None:
    """With a wildcard VIP the peer has the port that the application connected to."""
    with tellers(side.real, udp=udp) as servers:
        plane.publish(virtual_server(side.at(None, udp=udp), names(servers)))
        for port in (1, 443, 65535):
            (sock,) = plane.client.connected(side.target(port), udp=udp)
            assert peer(sock) == side.target(port)
            assert ask(sock) == servers[0].name


def test_peer_that_is_not_ours_stays_as_it_is(plane: Plane, side: Side, udp: bool) -> None:
    """A socket that connects to a real server directly sees its address."""
    with tellers(side.real, side.real, udp=udp) as (ours, other):
        plane.publish(virtual_server(side.at(PORT, udp=udp), [ours.name]))
        for server in (ours, other):
            target = as_seen_by(side, server.target)
            (sock,) = plane.client.connected(target, udp=udp)
            assert (peer(sock), ask(sock)) == (target, server.name)


def test_peers_of_many_sockets_are_their_own(plane: Plane, side: Side, udp: bool) -> None:
    """Sockets to several VIPs of one real server each see their VIP."""
    with tellers(side.real, udp=udp) as servers:
        plane.publish(*(virtual_server(side.at(PORT, number, udp=udp), names(servers)) for number in (1, 2, 3)))
        numbers = (1, 2, 3) * 5
        socks = [plane.client.connected(side.target(PORT, number), udp=udp)[0] for number in numbers]
        assert [peer(sock) for sock in socks] == [side.target(PORT, number) for number in numbers]


def test_udp_socket_that_connects_elsewhere_sees_where_it_is(plane: Plane, side: Side) -> None:
    """A UDP socket that moves from a VIP to its real server, and back, sees the address of its last connect."""
    with tellers(side.real, side.real, udp=True) as (one, two):
        plane.publish(
            virtual_server(side.at(PORT, 1, udp=True), [one.name], health=COUNTED),
            virtual_server(side.at(PORT, 2, udp=True), [two.name], health=COUNTED),
        )
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        for target, server in (
            (side.target(PORT, 1), one),
            (as_seen_by(side, one.target), one),
            (side.target(PORT, 2), two),
            (side.target(PORT, 1), one),
        ):
            sock.connect(target)
            assert peer(sock) == target
            assert ask_at_peer(sock) == (server.name, target)
        assert plane.active(side.at(PORT, 1, udp=True)) == {one.name: 1}
        assert plane.active(side.at(PORT, 2, udp=True)) == {two.name: 0}


def test_refused_connect_leaves_a_connected_udp_socket_as_it_was(plane: Plane, side: Side, refused: str) -> None:
    """A UDP socket whose connect to an empty pool is refused stays connected to its previous VIP, and counted."""
    with tellers(side.real, udp=True) as servers:
        full = virtual_server(side.at(PORT, 1, udp=True), names(servers), health=COUNTED)
        plane.publish(full, virtual_server(side.at(PORT, 2, udp=True), []))
        (sock,) = plane.client.connected(side.target(PORT, 1), udp=True)
        assert outcome(sock, side.target(PORT, 2)) == refused
        assert peer(sock) == side.target(PORT, 1)
        assert ask_at_peer(sock) == (servers[0].name, side.target(PORT, 1))
        assert plane.active(side.at(PORT, 1, udp=True)) == {servers[0].name: 1}
        sock.close()
        assert plane.active(side.at(PORT, 1, udp=True)) == {servers[0].name: 0}


def test_udp_connect_that_fails_later_leaves_a_socket_without_its_vip(plane: Plane, side: Side) -> None:
    """A connected UDP socket whose next connect has no route keeps its server, and sees it until the next connect."""
    unrouted = "[2001:db8::1]:80" if side.name == "ipv6" else "192.0.2.1:80"
    with tellers(side.real, udp=True) as (server,):
        plane.publish(
            virtual_server(side.at(PORT, 1, udp=True), [server.name], health=COUNTED),
            virtual_server(side.at(PORT, 2, udp=True), [unrouted], health=COUNTED),
        )
        (sock,) = plane.client.connected(side.target(PORT, 1), udp=True)
        assert outcome(sock, side.target(PORT, 2)) == "ENETUNREACH"
        assert (peer(sock), ask(sock)) == (as_seen_by(side, server.target), server.name)
        assert plane.active(side.at(PORT, 1, udp=True)) == {server.name: 0}
        sock.connect(side.target(PORT, 1))
        assert (peer(sock), ask(sock)) == (side.target(PORT, 1), server.name)
        assert plane.active(side.at(PORT, 1, udp=True)) == {server.name: 1}
        assert plane.active(side.at(PORT, 2, udp=True)) == {unrouted: 0}


def test_tcp_socket_connects_again_after_a_failure(plane: Plane, side: Side) -> None:
    """A TCP socket whose connect failed may connect again, to the VIP or elsewhere, and sees the new peer."""
    with tellers(side.real) as (server,), moody_servers(side.real) as (dead,):
        dead.refuse()
        for again in (side.target(PORT), as_seen_by(side, server.target)):
            plane.publish(virtual_server(side.at(PORT), [dead.name], health=COUNTED))
            (sock,) = plane.client.make(side.target(PORT))
            sock.settimeout(None)  # with a time-out Python calls connect(2) more than once
            assert outcome(sock, side.target(PORT)) == "ECONNREFUSED"
            assert error_of(sock.getpeername) == "ENOTCONN"
            plane.publish(virtual_server(side.at(PORT), [server.name], health=COUNTED))
            assert outcome(sock, again) == "ok"
            assert (peer(sock), ask(sock)) == (again, server.name)
            sock.close()
        assert plane.active(side.at(PORT)) == {server.name: 0}


def test_tcp_socket_connects_again_after_a_refusal(plane: Plane, side: Side, refused: str) -> None:
    """A TCP socket that was refused by an empty pool can connect again when the pool has a server."""
    with tellers(side.real) as servers:
        plane.publish(virtual_server(side.at(PORT), []))
        (sock,) = plane.client.make(side.target(PORT))
        assert outcome(sock, side.target(PORT)) == refused
        plane.publish(virtual_server(side.at(PORT), names(servers)))
        sock.connect(side.target(PORT))
        assert (peer(sock), ask(sock)) == (side.target(PORT), servers[0].name)


def test_second_connect_of_a_connected_tcp_socket_changes_nothing(plane: Plane, side: Side) -> None:
    """A connected TCP socket that connects again gets EISCONN, keeps its peer and is counted once."""
    with tellers(side.real) as servers:
        plane.publish(*(virtual_server(side.at(PORT, n), names(servers), health=COUNTED) for n in (1, 2)))
        (sock,) = plane.client.make(side.target(PORT))
        sock.settimeout(None)  # with a time-out Python takes EISCONN for success
        sock.connect(side.target(PORT, 1))
        for number in (1, 2):
            assert outcome(sock, side.target(PORT, number)) == "EISCONN"
        assert peer(sock) == side.target(PORT, 1)
        assert [plane.active(side.at(PORT, n)) for n in (1, 2)] == [{servers[0].name: 1}, {servers[0].name: 0}]


def test_tcp_socket_that_was_dissolved_can_be_used_again(plane: Plane, side: Side) -> None:
    """Connect to AF_UNSPEC ends a TCP connection; its count ends with the next connect, to the VIP or elsewhere."""
    with tellers(side.real) as (server,):
        plane.publish(virtual_server(side.at(PORT), [server.name], health=COUNTED))
        (sock,) = plane.client.make(side.target(PORT))
        for target, active in ((side.target(PORT), 1), (as_seen_by(side, server.target), 0), (side.target(PORT), 1)):
            sock.connect(target)
            assert (peer(sock), ask(sock)) == (target, server.name)
            assert plane.active(side.at(PORT)) == {server.name: active}
            dissolve(sock)
            assert error_of(sock.getpeername) == "ENOTCONN"
            assert plane.active(side.at(PORT)) == {server.name: 0 if plane.follows_every_state else active}


def test_udp_socket_that_was_dissolved_can_be_used_again(plane: Plane, side: Side) -> None:
    """Connect to AF_UNSPEC leaves an unconnected UDP socket, which sends to VIPs and connects again."""
    with tellers(side.real, udp=True) as (server,):
        plane.publish(virtual_server(side.at(PORT, udp=True), [server.name], health=COUNTED))
        (sock,) = plane.client.connected(side.target(PORT), udp=True)
        dissolve(sock)
        assert error_of(sock.getpeername) == "ENOTCONN"
        assert plane.active(side.at(PORT, udp=True)) == {server.name: 1}  # no program sees this connect
        assert ask_at(sock, side.target(PORT)) == (server.name, side.target(PORT))
        sock.connect(as_seen_by(side, server.target))
        assert peer(sock) == as_seen_by(side, server.target)
        sock.connect(side.target(PORT))
        assert (peer(sock), ask_at_peer(sock)) == (side.target(PORT), (server.name, side.target(PORT)))
        sock.close()
        assert plane.active(side.at(PORT, udp=True)) == {server.name: 0}
