"""Unconnected UDP: datagrams go to a real server, and answers come from the VIP."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from socket import socket as Socket  # noqa: N812 - the module's name is socket
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.layout.address_filter import bit_of
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm
from tests.support.chisquare import p_value
from tests.support.plane import Plane, real, virtual_server
from tests.support.process import free_port, wait_until
from tests.support.recorder import all_places_taken
from tests.support.tellers import tellers
from tests.support.transparency import (
    PORT,
    SIDES,
    Side,
    as_seen_by,
    ask_at,
    ask_at_peer,
    dissolve,
    error_of,
    hear_from,
    names,
    peer,
)


@pytest.fixture(params=["in places", "with sockets"])
def crowded(request: pytest.FixtureRequest, plane: Plane) -> Iterator[None]:
    """Run each test twice: with records in their array, and with all places in the array taken."""
    if request.param == "in places":
        yield
    else:
        with Maps(plane.pins) as maps, all_places_taken(maps.records()):
            yield


def test_answer_to_a_datagram_comes_from_the_vip(plane: Plane, side: Side) -> None:
    """A plain sendto and recvfrom client sees the VIP as the source of the answer."""
    with tellers(side.real, udp=True) as servers:
        plane.publish(virtual_server(side.at(PORT, udp=True), names(servers)))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        assert ask_at(sock, side.target(PORT)) == (servers[0].name, side.target(PORT))


def test_answer_to_a_connected_socket_comes_from_the_vip(plane: Plane, side: Side) -> None:
    """Recvfrom on a connected UDP socket returns the VIP as the source of the answer."""
    with tellers(side.real, udp=True) as servers:
        plane.publish(virtual_server(side.at(PORT, udp=True), names(servers)))
        (sock,) = plane.client.connected(side.target(PORT), udp=True)
        assert ask_at_peer(sock) == (servers[0].name, side.target(PORT))


def test_datagrams_of_one_socket_go_to_one_server(plane: Plane, side: Side) -> None:
    """Every datagram of a socket reaches the same server; sockets are spread evenly (chi-square, p > 0.001)."""
    with tellers(*[side.real] * 3, udp=True) as servers:
        plane.publish(virtual_server(side.at(PORT, udp=True), names(servers)))
        counts: Counter[str] = Counter()
        for sock in plane.client.make(side.target(PORT), 300, udp=True):
            answers = {ask_at(sock, side.target(PORT)) for _ in range(3)}
            ((server, source),) = answers
            assert source == side.target(PORT)
            counts[server] += 1
    assert p_value([counts[server.name] for server in servers], [1, 1, 1]) > 0.001, counts


def test_quic_like_client_stays_with_its_server(plane: Plane, side: Side) -> None:
    """A client with one unconnected socket and many datagrams in flight, which drops those from other addresses."""
    target = side.target(443)
    with tellers(*[side.real] * 4, udp=True) as servers:
        plane.publish(virtual_server(side.at(443, udp=True), names(servers)))
        (sock,) = plane.client.make(target, udp=True)
        waiting, server = set(range(1000)), set[str]()
        for first in range(0, 1000, 20):
            flight = range(first, first + 20)
            for number in flight:
                sock.sendmsg([number.to_bytes(4, "big"), bytes(1196)], [], 0, target)
            for _ in flight:
                answer, _, _, source = sock.recvmsg(2048)
                name, _, packet = answer.partition(b" ")
                assert (source[0], source[1]) == target
                waiting.remove(int.from_bytes(packet[:4], "big"))
                server.add(name.decode())
    assert (waiting, len(server)) == (set(), 1)


def test_one_socket_queries_several_vips(plane: Plane, side: Side) -> None:
    """A socket that queries four VIPs in turn gets each answer from the VIP that it queried."""
    with tellers(*[side.real] * 8, udp=True) as servers:
        pools = [names(servers[2 * number : 2 * number + 2]) for number in range(4)]
        plane.publish(*(virtual_server(side.at(PORT, n + 1, udp=True), pool) for n, pool in enumerate(pools)))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        chosen: list[set[str]] = [set(), set(), set(), set()]
        for _ in range(10):
            for number, pool in enumerate(pools):
                name, source = ask_at(sock, side.target(PORT, number + 1))
                assert source == side.target(PORT, number + 1)
                assert name in pool
                chosen[number].add(name)
        assert [len(found) for found in chosen] == [1, 1, 1, 1]
        for number in range(4):  # all are sent before the first answer
            sock.sendto(b"hello", side.target(PORT, number + 1))
        answers = {hear_from(sock) for _ in range(4)}
        assert answers == {(*found, side.target(PORT, number + 1)) for number, found in enumerate(chosen)}


def test_vip_that_was_not_queried_for_long_makes_room(plane: Plane, side: Side) -> None:
    """A socket that queries more VIPs than are remembered keeps its servers for the most recent VIPs."""
    with tellers(*[side.real] * 6, udp=True) as servers:
        plane.publish(
            *(
                virtual_server(side.at(PORT, number, udp=True), [server.name])
                for number, server in enumerate(servers, 1)
            )
        )
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        for number in (1, 2, 3, 4, 1, 5, 1, 6, 1, 2, 1):
            assert ask_at(sock, side.target(PORT, number)) == (servers[number - 1].name, side.target(PORT, number))
        # Six VIPs were queried; the one queried repeatedly was never drawn again.
        connects = [plane.connects(side.at(PORT, number, udp=True))[servers[number - 1].name] for number in range(1, 7)]
        assert connects == [1, 2, 1, 1, 1, 1]


def test_answer_of_a_server_of_two_vips_comes_from_the_last_queried_one(plane: Plane, side: Side) -> None:
    """If two VIPs lead to one real server, its answers have the VIP that the socket queried last as their source."""
    with tellers(side.real, udp=True) as servers:
        plane.publish(*(virtual_server(side.at(PORT, number, udp=True), names(servers)) for number in (1, 2)))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        for number in (1, 2, 1, 1, 2, 1):
            assert ask_at(sock, side.target(PORT, number)) == (servers[0].name, side.target(PORT, number))


def test_answer_of_a_server_that_was_queried_directly_comes_from_there(plane: Plane, side: Side) -> None:
    """If a socket queries a VIP and its real server directly, answers have the last queried address as their source."""
    with tellers(side.real, udp=True) as (server,):
        plane.publish(virtual_server(side.at(PORT, udp=True), [server.name]))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        for target in (side.target(PORT), as_seen_by(side, server.target)) * 3:
            assert ask_at(sock, target) == (server.name, target)


def test_server_whose_address_passes_the_filter_of_vips_is_distinguished(plane: Plane) -> None:
    """The same holds if the filter of VIP addresses has a false positive for the real server's address."""
    wanted = bit_of(parse_address("10.64.0.1"))
    hosts = (f"127.{a}.{b}.{c}" for a in range(1, 256) for b in range(256) for c in range(1, 255))
    host = next(host for host in hosts if bit_of(parse_address(host)) == wanted)
    with tellers(host, udp=True) as (server,):
        plane.publish(virtual_server("10.64.0.1:53/udp", [server.name]))
        (sock,) = plane.client.make(("10.64.0.1", PORT), udp=True)
        for target in (("10.64.0.1", PORT), server.target) * 3:
            assert ask_at(sock, target) == (server.name, target)


def test_unconnected_socket_that_connects_sees_its_peer(plane: Plane, side: Side) -> None:
    """A UDP socket that sent to a VIP and then connects to the real server sees the server as its peer, not the VIP."""
    with tellers(side.real, udp=True) as (server,):
        plane.publish(virtual_server(side.at(PORT, udp=True), [server.name]))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        assert ask_at(sock, side.target(PORT)) == (server.name, side.target(PORT))
        sock.connect(as_seen_by(side, server.target))
        assert peer(sock) == as_seen_by(side, server.target)
        assert ask_at_peer(sock) == (server.name, as_seen_by(side, server.target))


def test_datagrams_leave_a_server_that_was_removed(plane: Plane, side: Side) -> None:
    """After a server's removal the next datagram goes to another server for good; other sockets do not move."""
    with tellers(*[side.real] * 3, udp=True) as servers:
        vip, target = side.at(PORT, udp=True), side.target(PORT)
        plane.publish(virtual_server(vip, names(servers)))
        socks = plane.client.make(target, 30, udp=True)
        before = [ask_at(sock, target) for sock in socks]
        gone, _ = before[0]
        plane.publish(virtual_server(vip, [name for name in names(servers) if name != gone]))
        after = [ask_at(sock, target) for sock in socks]
        assert {source for _, source in after} == {target}
        assert [a == b for a, b in zip(before, after, strict=True)] == [name != gone for name, _ in before]
        assert gone not in {name for name, _ in after}
        assert [ask_at(sock, target) for sock in socks] == after


def test_datagrams_to_an_empty_pool_are_refused(plane: Plane, side: Side, refused: str) -> None:
    """Sendto to an empty pool fails at once, before and after the pool had servers."""
    with tellers(side.real, udp=True) as servers:
        vip, target = side.at(PORT, udp=True), side.target(PORT)
        (sock,) = plane.client.make(target, udp=True)
        for _ in range(2):
            plane.publish(virtual_server(vip, []))
            assert error_of(sock.sendto, b"hello", target) == refused
            plane.publish(virtual_server(vip, names(servers)))
            assert ask_at(sock, target) == (servers[0].name, target)


def test_datagrams_to_a_vip_that_is_gone_are_not_ours(plane: Plane, side: Side) -> None:
    """After the removal of its virtual server, a datagram to a VIP is routed as usual, here without a route."""
    with tellers(side.real, udp=True) as servers:
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        plane.publish(virtual_server(side.at(PORT, udp=True), names(servers)))
        assert ask_at(sock, side.target(PORT)) == (servers[0].name, side.target(PORT))
        assert error_of(sock.sendto, b"hello", side.target(PORT + 1)) == "ENETUNREACH"
        plane.publish()
        assert error_of(sock.sendto, b"hello", side.target(PORT)) == "ENETUNREACH"


def test_answers_behind_a_wildcard_come_from_the_queried_port(plane: Plane, side: Side) -> None:
    """Datagrams of one socket to several ports of a wildcard VIP get answers from those ports."""
    with tellers(*[side.real] * 8, udp=True) as servers:
        plane.publish(virtual_server(side.at(None, udp=True), names(servers)))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        for port in (1, 53, 65535, 1, 53):
            name, source = ask_at(sock, side.target(port))
            assert source == side.target(port)
            assert name in names(servers)


def test_socket_moves_on_from_a_wildcard_to_the_exact_port(plane: Plane, side: Side) -> None:
    """If a wildcard's server is removed and an exact port has been added, a socket moves there, and stays."""
    with tellers(*[side.real] * 5, udp=True) as (old, other, *exact):
        target = side.target(PORT)
        plane.publish(virtual_server(side.at(None, udp=True), [old.name]))
        (sock,) = plane.client.make(target, udp=True)
        assert ask_at(sock, target) == (old.name, target)
        plane.publish(
            virtual_server(side.at(None, udp=True), [other.name]), virtual_server(side.at(PORT, udp=True), names(exact))
        )
        answers = {ask_at(sock, target) for _ in range(20)}
        ((name, source),) = answers
        assert source == target
        assert name in names(exact)


def test_datagram_to_the_vip_of_a_connected_socket_goes_where_it_is_connected(plane: Plane, side: Side) -> None:
    """Sendto to the VIP that a socket is connected to reaches the same server as send; its answers are received."""
    with tellers(*[side.real] * 5, udp=True) as servers:
        target = side.target(PORT)
        plane.publish(virtual_server(side.at(PORT, udp=True), names(servers)))
        for sock in plane.client.connected(target, 30, udp=True):
            name, source = ask_at_peer(sock)
            assert source == target
            for _ in range(4):
                assert ask_at(sock, target) == (name, target)
                sock.sendmsg([b"hello"], [], 0, target)
                assert hear_from(sock) == (name, target)
            assert ask_at_peer(sock) == (name, target)
        assert sum(plane.connects(side.at(PORT, udp=True)).values()) == 30


@pytest.mark.usefixtures("crowded")
def test_connected_socket_goes_on_to_a_server_that_left(plane: Plane, side: Side) -> None:
    """Sendto and send of a connected socket reach one server, with any change of its pool, until it connects again."""
    with tellers(side.real, side.real, udp=True) as (one, two):
        vip, target = side.at(PORT, udp=True), side.target(PORT)
        plane.publish(virtual_server(vip, [one.name]))
        (sock,) = plane.client.connected(target, udp=True)
        for pool in ([one.name], [two.name], []):
            plane.publish(virtual_server(vip, pool))
            assert ask_at(sock, target) == ask_at_peer(sock) == (one.name, target)
        plane.publish()
        assert ask_at(sock, target) == ask_at_peer(sock) == (one.name, target)
        plane.publish(virtual_server(vip, [two.name]))
        sock.connect(target)
        assert ask_at(sock, target) == ask_at_peer(sock) == (two.name, target)


def test_socket_that_is_unconnected_again_is_as_any_other(plane: Plane, side: Side) -> None:
    """After connect(2) to AF_UNSPEC a datagram to the VIP is the first one of an unconnected socket."""
    with tellers(side.real, side.real, udp=True) as (one, two):
        vip, target = side.at(PORT, udp=True), side.target(PORT)
        plane.publish(virtual_server(vip, [one.name]))
        (sock,) = plane.client.connected(target, udp=True)
        assert ask_at(sock, target) == (one.name, target)
        plane.publish(virtual_server(vip, [two.name]))
        dissolve(sock)
        assert ask_at(sock, target) == (two.name, target)
        sock.connect(target)
        assert ask_at(sock, target) == ask_at_peer(sock) == (two.name, target)


def test_connected_through_a_wildcard_is_connected_at_one_port(plane: Plane, side: Side) -> None:
    """With a wildcard VIP, the peer is the port that a socket connected to, and another port is another VIP."""
    with tellers(*[side.real] * 5, udp=True) as servers:
        plane.publish(virtual_server(side.at(None, udp=True), names(servers)))
        (sock,) = plane.client.connected(side.target(PORT), udp=True)
        name, _ = ask_at_peer(sock)
        for _ in range(5):
            assert ask_at(sock, side.target(PORT)) == (name, side.target(PORT))
        before = sum(server.heard for server in servers)
        sock.sendto(b"elsewhere", side.target(PORT + 1))
        wait_until(lambda: sum(server.heard for server in servers) == before + 1, "some server has got it")
        assert plane.connects(side.at(None, udp=True)) != {server.name: 0 for server in servers}


def test_socket_that_is_connected_to_a_real_server_is_not_ours(plane: Plane, side: Side) -> None:
    """A socket that is connected to a server directly can still send to a VIP, and receives from its peer only."""
    with tellers(side.real, side.real, udp=True) as (one, two):
        plane.publish(virtual_server(side.at(PORT, udp=True), [two.name]))
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        sock.connect(as_seen_by(side, one.target))
        sock.sendto(b"other", side.target(PORT))
        wait_until(lambda: two.heard == 1, "the VIP's server has got it")
        assert ask_at_peer(sock) == (one.name, as_seen_by(side, one.target))
        assert ask_at(sock, as_seen_by(side, one.target)) == (one.name, as_seen_by(side, one.target))


def test_datagrams_with_an_address_on_a_connected_socket(plane: Plane, side: Side) -> None:
    """A connected UDP socket can still send elsewhere by sendto, also to a VIP, and stays connected."""
    with tellers(side.real, side.real, udp=True) as (one, two):
        plane.publish(
            virtual_server(side.at(PORT, 1, udp=True), [one.name]),
            virtual_server(side.at(PORT, 2, udp=True), [two.name]),
        )
        (sock,) = plane.client.connected(side.target(PORT, 1), udp=True)
        sock.sendto(b"other", side.target(PORT, 2))
        wait_until(lambda: two.heard == 1, "the other server has got it")
        assert peer(sock) == side.target(PORT, 1)
        assert ask_at_peer(sock) == (one.name, side.target(PORT, 1))


IP_RECVERR: Final = 11
PAUSE: Final = 5.3
"""Seconds without a datagram after which a socket may change its server."""


def answering(sockets: Mapping[Side, Socket]) -> list[str]:
    """Query the VIP of each side; return the servers that answer."""
    return [ask_at(sock, side.target(PORT))[0] for side, sock in sockets.items()]


def test_socket_that_pauses_returns_to_a_better_tier(plane: Plane) -> None:
    """A socket that was sent to a backup returns at its next pause; one that never pauses stays."""
    with tellers("127.0.0.1", "::1", "127.0.0.1", "::1", udp=True) as servers:
        one, two = (dict(zip(("127.0.0.1", "::1"), names(servers)[at : at + 2], strict=True)) for at in (0, 2))

        def publish(first: Mapping[str, str], second: Mapping[str, str]) -> None:
            plane.publish(
                *(
                    virtual_server(side.at(PORT, udp=True), [first[side.real], real(second[side.real], 1, 1)])
                    for side in SIDES[:2]
                )
            )

        idle, busy = ({side: plane.client.make(side.target(PORT), udp=True)[0] for side in SIDES} for _ in range(2))
        at_one, at_two = ([pool[side.real] for side in SIDES] for pool in (one, two))
        publish(one, two)
        assert answering(idle) == answering(busy) == at_one
        publish(two, one)
        assert answering(idle) == answering(busy) == at_one
        until = time.monotonic() + PAUSE
        while time.monotonic() < until:
            assert answering(busy) == at_one
            time.sleep(0.2)
        assert (answering(idle), answering(busy)) == (at_two, at_one)
        assert (answering(idle), answering(busy)) == (at_two, at_one)


def test_socket_that_hears_its_server_does_not_pause(plane: Plane) -> None:
    """Datagrams from a backup keep a socket there as those to it do, if the socket reads their source."""
    sock, incurious = plane.client.make(("10.64.0.1", PORT), 2, udp=True)
    with tellers("127.0.0.1", udp=True) as (primary,), socket.socket(type=socket.SOCK_DGRAM) as backup:
        backup.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{backup.getsockname()[1]}"
        plane.publish(virtual_server("10.64.0.1:53/udp", [name]))
        clients = []
        for one in (sock, incurious):
            one.sendto(b"subscribe", ("10.64.0.1", PORT))
            clients.append(backup.recvfrom(100)[1])
        plane.publish(virtual_server("10.64.0.1:53/udp", [primary.name, real(name, 1, 1)]))
        until = time.monotonic() + PAUSE
        while time.monotonic() < until:
            for client in clients:
                backup.sendto(b"news", client)
            assert sock.recvfrom(100) == (b"news", ("10.64.0.1", PORT))
            assert incurious.recv(100) == b"news"
            time.sleep(0.2)
        sock.sendto(b"still there", ("10.64.0.1", PORT))
        assert backup.recvfrom(100)[0] == b"still there"
        assert ask_at(incurious, ("10.64.0.1", PORT))[0] == primary.name


def test_pause_moves_no_socket_within_a_tier(plane: Plane) -> None:
    """A socket with a server of the current tier stays there after a pause, and takes no turn of others."""
    with tellers(*["127.0.0.1"] * 21, udp=True) as servers:
        pool = [real(server.name, 1, number // 20) for number, server in enumerate(servers)]
        vips = {algorithm: f"10.64.0.{number}" for number, algorithm in enumerate(Algorithm, 1)}
        plane.publish(*(virtual_server(f"{host}:53/udp", pool, algorithm) for algorithm, host in vips.items()))
        sockets = {host: plane.client.make((host, PORT), 40, udp=True) for host in vips.values()}

        def asked(first: int) -> dict[str, list[str]]:
            """Query each VIP from twenty of its sockets; return the servers that answer."""
            return {
                host: [ask_at(sock, (host, PORT))[0] for sock in several[first : first + 20]]
                for host, several in sockets.items()
            }

        before = asked(0)
        time.sleep(PAUSE)
        assert asked(0) == before
        assert [sum(plane.connects(f"{host}:53/udp").values()) for host in sockets] == [20, 20, 20]
        by_turns = vips[Algorithm.ROUND_ROBIN]
        assert asked(20)[by_turns] == before[by_turns]


def test_error_queue_shows_the_real_server(plane: Plane) -> None:
    """No program runs for MSG_ERRQUEUE: the address of a closed port there is the real server's."""
    gone = free_port()
    plane.publish(virtual_server("10.64.0.1:53/udp", [f"127.0.0.1:{gone}"]))
    (sock,) = plane.client.connected(("10.64.0.1", PORT), udp=True)
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    sock.send(b"hello")
    assert error_of(sock.recv, 100) == "ECONNREFUSED"
    message, _, _, source = sock.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
    assert (message, source) == (b"hello", ("127.0.0.1", gone))
    assert peer(sock) == ("10.64.0.1", PORT)
