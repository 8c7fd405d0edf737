"""Other ways to connect: non-blocking, TCP Fast Open, MPTCP."""

from __future__ import annotations

import select
import socket
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.sockets.records import placed_records
from clb_discovery.model.servers import PassiveHealth
from tests.support.moody import moody_servers
from tests.support.pace import effort
from tests.support.plane import NO_TRACKING, Plane, virtual_server
from tests.support.process import wait_until
from tests.support.sockets import outcome
from tests.support.tellers import tellers
from tests.support.transparency import (
    COUNTED,
    IPPROTO_MPTCP,
    MPTCP_ENABLED,
    PORT,
    SIDES,
    WATCHED,
    Side,
    as_seen_by,
    ask,
    entered,
    fast_open_allowed,
    heard,
    multipath,
    names,
    peer,
)

TCP_FASTOPEN_CONNECT: Final = 30
SYN_DATA: Final = 32
"""TCPI_OPT_SYN_DATA of struct tcp_info: data in the SYN was accepted."""


def test_non_blocking_connect(plane: Plane, side: Side, refused: str) -> None:
    """A non-blocking connect works as usual: in progress, then writable with the VIP as peer, or refused at once."""
    with tellers(side.real) as servers:
        plane.publish(
            virtual_server(side.at(PORT, 1), names(servers), health=WATCHED),
            virtual_server(side.at(PORT, 2), []),
        )
        for _ in range(20):
            (sock,) = plane.client.make(side.target(PORT, 1))
            sock.setblocking(False)
            assert outcome(sock, side.target(PORT, 1)) in {"EINPROGRESS", "ok"}
            assert select.select([], [sock], [], 5)[1] == [sock]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert peer(sock) == side.target(PORT, 1)
            assert outcome(sock, side.target(PORT, 1)) in {"EISCONN", "ok"}
            sock.settimeout(5)
            assert ask(sock) == servers[0].name
        (sock,) = plane.client.make(side.target(PORT, 2))
        sock.setblocking(False)
        assert outcome(sock, side.target(PORT, 2)) == refused


def test_non_blocking_connect_that_fails(plane: Plane, side: Side) -> None:
    """A non-blocking connect that the real server refuses fails, counts as a failure, and can be repeated."""
    with tellers(side.real) as (server,), moody_servers(side.real) as (dead,):
        dead.refuse()
        plane.publish(virtual_server(side.at(PORT), [dead.name], health=WATCHED))
        (sock,) = plane.client.make(side.target(PORT))
        sock.setblocking(False)
        assert outcome(sock, side.target(PORT)) in {"EINPROGRESS", "ECONNREFUSED"}
        select.select([], [sock], [], 5)
        assert plane.servers(side.at(PORT))[dead.name].failures == 1
        assert outcome(sock, side.target(PORT)) == "ECONNREFUSED"
        plane.publish(virtual_server(side.at(PORT), [server.name], health=WATCHED))
        sock.settimeout(5)
        sock.connect(side.target(PORT))
        assert (peer(sock), ask(sock)) == (side.target(PORT), server.name)


def test_fast_open(plane: Plane, side: Side) -> None:
    """TCP Fast Open, by connect and by sendto, carries its data in the SYN to a real server and sees the VIP."""
    with fast_open_allowed(), tellers(side.real) as servers:
        plane.publish(virtual_server(side.at(PORT), names(servers), health=COUNTED))

        def by_connect(sock: socket.socket) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect(side.target(PORT))
            sock.sendall(b"hello")

        def by_sendto(sock: socket.socket) -> None:
            assert sock.sendto(b"hello", socket.MSG_FASTOPEN, side.target(PORT)) == 5

        for open_fast in (by_connect, by_sendto):
            (sock,) = plane.client.make(side.target(PORT))
            open_fast(sock)
            assert heard(sock.recv(100), b"hello") == servers[0].name
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5] & SYN_DATA
            assert peer(sock) == side.target(PORT)
            assert plane.active(side.at(PORT)) == {servers[0].name: 1}
            sock.close()
            assert plane.active(side.at(PORT)) == {servers[0].name: 0}


def test_fast_open_that_is_never_sent_is_not_counted(plane: Plane, side: Side) -> None:
    """A Fast Open connect that is closed before it has sent anything leaves no active connection and no failure."""
    with fast_open_allowed(), tellers(side.real) as servers:
        plane.publish(virtual_server(side.at(PORT), names(servers), health=WATCHED))
        (sock,) = plane.client.make(side.target(PORT))
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect(side.target(PORT))
        sock.close()
        counted = plane.servers(side.at(PORT))[servers[0].name]
        assert (counted.connects, counted.active, counted.failures) == (1, 0, 0)
        assert servers[0].heard == 0


if_multipath = pytest.mark.skipif(not MPTCP_ENABLED.exists(), reason="lacks sockets of multipath TCP")


@if_multipath
@pytest.mark.parametrize("protocol", [0, IPPROTO_MPTCP], ids=["tcp", "mptcp"])
def test_multipath_socket_is_balanced(plane: Plane, side: Side, protocol: int) -> None:
    """An MPTCP connect reaches the real server, with or without MPTCP there, and is active until the close.

    Its peer is the real server: the connecting socket is another one than the application's.
    """
    with tellers(side.real, protocol=protocol) as (server,):
        plane.publish(virtual_server(side.at(PORT), [server.name], health=WATCHED))
        with multipath(plane.cgroup, side.target(PORT)) as sock:
            sock.connect(side.target(PORT))
            assert ask(sock) == server.name
            assert peer(sock) == as_seen_by(side, server.target)
            assert plane.active(side.at(PORT)) == {server.name: 1}
        wait_until(lambda: plane.active(side.at(PORT)) == {server.name: 0}, "the connection is no longer counted")


@if_multipath
@pytest.mark.parametrize("health", [NO_TRACKING, WATCHED], ids=["lean", "watched"])
def test_multipath_sockets_leave_nothing(plane: Plane, health: PassiveHealth) -> None:
    """No program sees the close of the sockets that connect for MPTCP; they leave neither a record nor a count.

    `CLB_TEST_EFFORT=100` makes 100,000 connects.
    """
    if health is NO_TRACKING and plane.follows_every_state:
        pytest.skip("lacks types of the kernel, so the places of such sockets are lost if nothing follows them")
    side = SIDES[0]
    with tellers(side.real, protocol=IPPROTO_MPTCP) as (server,), entered(plane.cgroup):
        plane.publish(virtual_server(side.at(PORT), [server.name], health=health))
        for _ in range(effort(1_000, least=200)):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
                sock.connect(side.target(PORT))
    with Maps(plane.pins) as maps:
        wait_until(lambda: not placed_records(maps.records()).members, "all places are free")
        assert not placed_records(maps.records()).crowded
    assert plane.active(side.at(PORT)) == {server.name: 0}


@if_multipath
def test_multipath_socket_of_an_empty_pool_is_refused(plane: Plane, side: Side, refused: str) -> None:
    """An MPTCP socket's connect to an empty pool fails at once."""
    plane.publish(virtual_server(side.at(PORT), []))
    with multipath(plane.cgroup, side.target(PORT)) as sock:
        assert outcome(sock, side.target(PORT)) == refused


@if_multipath
def test_multipath_connect_that_is_given_up_is_not_counted_on(plane: Plane, side: Side) -> None:
    """An MPTCP socket that is closed during its connect is not active any more."""
    with moody_servers(side.real) as (server,):
        server.fall_silent()
        plane.publish(virtual_server(side.at(PORT), [server.name], health=COUNTED))
        with multipath(plane.cgroup, side.target(PORT)) as sock:
            sock.setblocking(False)
            assert outcome(sock, side.target(PORT)) == "EINPROGRESS"
            assert plane.active(side.at(PORT)) == {server.name: 1}
        wait_until(lambda: plane.active(side.at(PORT)) == {server.name: 0}, "the connection is no longer counted")
