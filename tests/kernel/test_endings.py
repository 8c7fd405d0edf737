"""Every way in which a TCP connect ends before it is established, and whether it counts against the real server.

A connect that the other end ends, or that nothing answers, is a failure. One that ends on this host says nothing of the
server: the application gave it up, or it never left.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.ring import Ring
from clb_discovery.documents.trace import Kind
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Server
from clb_discovery.model.servers import PassiveHealth
from tests.support.cgroups import inside
from tests.support.kernel_objects import foreign_denial, foreign_filter
from tests.support.moody import MoodyServer, moody_servers
from tests.support.plane import Plane, real, virtual_server
from tests.support.process import running, wait_until
from tests.support.router import ERRORS, host_behind, router
from tests.support.sockets import RESET, Target, outcome
from tests.support.transparency import (
    MPTCP_ENABLED,
    PORT,
    SIDES,
    Side,
    as_seen_by,
    dissolve,
    error_of,
    fast_open_allowed,
    multipath,
)

FOR_GOOD: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000)
OTHER: Final = PORT + 1
TIMES: Final = 3
"""So many failures in a row eject a server."""
PAST_A_REPETITION: Final = 1500
"""Milliseconds of patience (TCP_USER_TIMEOUT) in which the kernel repeats a SYN once, after a second."""
SYN_SENT: Final = 2
KERNEL: Final = tuple(map(int, os.uname().release.split(".")[:2]))
TELLS_ICMP: Final = KERNEL >= (6, 11)
"""Before, and without a backport, an ICMP error looks like a shutdown to programs."""


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


@pytest.fixture(params=[False, True], ids=["polled", "blocking"])
def blocking(request: pytest.FixtureRequest) -> bool:
    """Return whether the application waits in connect(2), or is told by poll(2)."""
    found: bool = request.param
    return found


class Scene:
    """An application whose virtual server has one server, and a spare in the next tier."""

    def __init__(self, plane: Plane, side: Side, server: MoodyServer, *, blocking: bool) -> None:
        self.plane = plane
        self.target = side.target(PORT)
        self.side = side
        self.server = server
        self.blocking = blocking

    def active(self) -> int:
        """Return how many connections the server has."""
        return self.plane.active(self.side.at(PORT))[self.server.name]

    def make(self, count: int = 1) -> list[socket.socket]:
        """Make sockets, which block or have a time-out: with one Python polls."""
        made = self.plane.client.make(self.target, count)
        for sock in made:
            sock.settimeout(None if self.blocking else 20)
        return made

    def dialled(self, sock: socket.socket, patience_ms: int = 0) -> str:
        """Connect until it ends; return how, `ok` or the errno's name.

        :param patience_ms: when the kernel gives up, at its next timer; 0: when it does so by itself.
        """
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        return outcome(sock, self.target)

    def begun(self, sock: socket.socket) -> socket.socket:
        """Let a connect be on its way: of a socket that does not wait, or waits for a moment (SO_SNDTIMEO)."""
        sock.setblocking(self.blocking)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 10_000))
        assert outcome(sock, self.target) == "EINPROGRESS"
        return sock

    def patient(self) -> socket.socket:
        """Let the connect of a socket be on its way which the kernel does not give up."""
        (sock,) = self.make()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        return self.begun(sock)

    def reused(self, bound: Target | None = None) -> socket.socket:
        """Return a socket that another virtual server's only server has refused."""
        (sock,) = self.make()
        if bound:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(bound)
        sock.settimeout(None)
        assert outcome(sock, self.side.target(OTHER)) == "ECONNREFUSED"
        sock.settimeout(None if self.blocking else 20)
        return sock


def state(sock: socket.socket) -> int:
    """Return the state of a TCP socket (TCP_* of linux/tcp_states.h)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def has_left_syn_sent(sock: socket.socket) -> bool:
    """Tell whether a connect is no longer on its way."""
    return state(sock) != SYN_SENT


def refused(scene: Scene) -> None:
    """Have the server answer with a reset."""
    for sock in scene.make(TIMES):
        assert scene.dialled(sock) == "ECONNREFUSED"


def refused_and_repeated(scene: Scene) -> None:
    """Connect again and again with the same socket, each time to be refused."""
    (sock,) = scene.make()
    for _ in range(TIMES):
        assert scene.dialled(sock) == "ECONNREFUSED"
        if not scene.blocking:
            assert outcome(sock, scene.target) == "ECONNABORTED"  # makes the socket ready for the next one


def refused_fast_open(scene: Scene) -> None:
    """Have the server reset connects that bring data with their SYN."""
    with fast_open_allowed():
        for sock in scene.make(TIMES):
            sock.setblocking(scene.blocking)
            error_of(sock.sendto, b"hello", socket.MSG_FASTOPEN, scene.target)
            wait_until(partial(has_left_syn_sent, sock), "the server has answered")


def refused_multipath(scene: Scene) -> None:
    """Have the server reset connects of MPTCP sockets."""
    for _ in range(TIMES):
        with multipath(scene.plane.cgroup, scene.target) as sock:
            sock.settimeout(None if scene.blocking else 20)
            assert outcome(sock, scene.target) == "ECONNREFUSED"


def timed_out(scene: Scene) -> None:
    """Have the kernel give up a server that does not answer."""
    assert dialled_together(scene, 1) == ["ETIMEDOUT"] * TIMES


def timed_out_after_a_repetition(scene: Scene) -> None:
    """Have the kernel repeat the SYN before it gives up a server that does not answer."""
    assert dialled_together(scene, PAST_A_REPETITION) == ["ETIMEDOUT"] * TIMES


def timed_out_fast_open(scene: Scene) -> None:
    """Have the kernel give up connects that bring data with their SYN."""
    with fast_open_allowed():
        sockets = scene.make(TIMES)
        for sock in sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PAST_A_REPETITION)
            error_of(sock.sendto, b"hello", socket.MSG_FASTOPEN, scene.target)
        for sock in sockets:
            wait_until(partial(has_left_syn_sent, sock), "the kernel has given up")


def dialled_together(scene: Scene, patience_ms: int) -> list[str]:
    """Connect at once with several sockets; return how each ended."""
    with ThreadPoolExecutor(TIMES) as threads:
        return list(threads.map(scene.dialled, scene.make(TIMES), [patience_ms] * TIMES))


def shut_down(how: int) -> Callable[[Scene], None]:
    """Return the ending by shutdown(2)."""

    def end(scene: Scene) -> None:
        for _ in range(TIMES):
            scene.patient().shutdown(how)

    return end


def dissolved(scene: Scene) -> None:
    """Give up by connect(2) to AF_UNSPEC."""
    for _ in range(TIMES):
        dissolve(scene.patient())


def closed(scene: Scene) -> None:
    """Close the socket."""
    for _ in range(TIMES):
        scene.patient().close()


def closed_with_reset(scene: Scene) -> None:
    """Close the socket without lingering."""
    for _ in range(TIMES):
        sock = scene.patient()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()


def closed_multipath(scene: Scene) -> None:
    """Close an MPTCP socket, whose connect is another socket's."""
    for _ in range(TIMES):
        scene.begun(multipath(scene.plane.cgroup, scene.target)).close()
    wait_until(lambda: scene.active() == 0, "the kernel has closed the others, too")


def killed(scene: Scene) -> None:
    """Kill the process that waits in connect(2), or in poll(2) for its end."""
    program = f"import socket; socket.create_connection({scene.target!r}, {None if scene.blocking else 60})"
    for _ in range(TIMES):
        with running(inside(scene.plane.cgroup, [sys.executable, "-c", program]), Path(os.devnull)) as process:
            wait_until(lambda: scene.active() == 1, "its connect is on its way")
            process.kill()
            process.wait()
        assert scene.active() == 0


def without_a_port(scene: Scene) -> None:
    """Leave no port (EADDRNOTAVAIL) to a socket whose connect before was refused."""
    target = as_seen_by(scene.side, scene.server.target)
    for _ in range(TIMES):
        (first,) = scene.make()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind((target[0], 0))
        sock = scene.reused(first.getsockname()[:2])
        first.connect(target)
        assert scene.dialled(sock) == "EADDRNOTAVAIL"
        sock.close()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        first.close()


def reset_later(scene: Scene) -> None:
    """Have the server reset connections that were established."""
    for sock in scene.make(TIMES):
        assert scene.dialled(sock) == "ok"
        peer = scene.server.take()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        sock.settimeout(5)
        with suppress(ConnectionResetError):
            sock.recv(1)


class Ending(NamedTuple):
    """A way in which connects end."""

    end: Callable[[Scene], None]
    """Ends so many that three failures eject."""
    mood: Callable[[MoodyServer], None]
    """What becomes of the server before."""
    reported: Kind = Kind.GIVEN_UP
    """What `trace` is told."""


SILENT, REFUSING, ACCEPTING = MoodyServer.fall_silent, MoodyServer.refuse, MoodyServer.accept
FAULTS: Final = {
    "refused": Ending(refused, REFUSING),
    "refused, repeated": Ending(refused_and_repeated, REFUSING),
    "refused, fast open": Ending(refused_fast_open, REFUSING),
    "refused, MPTCP": Ending(refused_multipath, REFUSING),
    "timed out": Ending(timed_out, SILENT),
    "timed out, repeated": Ending(timed_out_after_a_repetition, SILENT),
    "timed out, fast open": Ending(timed_out_fast_open, SILENT),
}
OWN: Final = {
    "SHUT_RD": Ending(shut_down(socket.SHUT_RD), SILENT),
    "SHUT_WR": Ending(shut_down(socket.SHUT_WR), SILENT),
    "SHUT_RDWR": Ending(shut_down(socket.SHUT_RDWR), SILENT),
    "AF_UNSPEC": Ending(dissolved, SILENT),
    "close": Ending(closed, SILENT),
    "close with reset": Ending(closed_with_reset, SILENT),
    "close, MPTCP": Ending(closed_multipath, SILENT),
    "killed": Ending(killed, SILENT),
    "EADDRNOTAVAIL": Ending(without_a_port, ACCEPTING),
    "reset later": Ending(reset_later, ACCEPTING, Kind.ESTABLISHED),
}


def possible(endings: dict[str, Ending]) -> list[object]:
    """Return those that this kernel has sockets for."""
    lacks = pytest.mark.skipif(not MPTCP_ENABLED.exists(), reason="lacks sockets of multipath TCP")
    return [pytest.param(end, id=name, marks=[lacks] if "MPTCP" in name else []) for name, end in endings.items()]


@contextmanager
def heard(plane: Plane) -> Iterator[Counter[Kind]]:
    """Listen while the block runs; then fill the count of what was reported of connects to `PORT`."""
    found = Counter[Kind]()
    with Maps(plane.pins) as maps, closing(Ring(maps.events(), structs.EVENTS_BYTES)) as ring:
        ring.skip()
        maps.listen_until(time.monotonic_ns() + 600_000_000_000)
        try:
            yield found
        finally:
            maps.listen_until(0)
        events = map(elements.unpack_event, ring.records(0))
        found.update(Kind(event.kind) for event in events if elements.unpack_vip(event.member[:20]).port == PORT)


def end(plane: Plane, side: Side, ending: Ending, *, blocking: bool) -> tuple[Server, Counter[Kind]]:
    """End connects to one server in this way; return what was counted of it, and what was reported."""
    with moody_servers(*[side.real] * 3) as (server, spare, dead), heard(plane) as kinds:
        ending.mood(server)
        dead.refuse()
        plane.publish(
            virtual_server(side.at(PORT), [server.name, real(spare.name, 1, 1)], health=FOR_GOOD),
            virtual_server(side.at(OTHER), [dead.name], health=FOR_GOOD),
        )
        ending.end(Scene(plane, side, server, blocking=blocking))
        counted = plane.servers(side.at(PORT))[server.name]
    return counted, kinds


@pytest.mark.parametrize("ending", possible(FAULTS))
def test_connect_that_the_other_end_ends_is_a_failure(plane: Plane, side: Side, ending: Ending, blocking: bool) -> None:
    """A refused connect and one that nothing answers count, and three of them eject the server."""
    counted, kinds = end(plane, side, ending, blocking=blocking)
    assert (counted.connects, counted.failures, counted.active, counted.times_ejected) == (TIMES, TIMES, 0, 1)
    assert kinds == {Kind.SENT: TIMES, Kind.FAILED: TIMES, Kind.EJECTED: 1}


def assert_no_failure(counted: Server, kinds: Counter[Kind], reported: Kind = Kind.GIVEN_UP) -> None:
    """Assert that three connects have left a server as healthy as it was."""
    assert (counted.connects, counted.failures, counted.active, counted.ejected_until) == (TIMES, 0, 0, 0)
    assert kinds == {Kind.SENT: TIMES, reported: TIMES}


@pytest.mark.parametrize("ending", possible(OWN))
def test_connect_that_this_host_ends_is_no_failure(plane: Plane, side: Side, ending: Ending, blocking: bool) -> None:
    """Connects that the application gives up, or that cannot leave, say nothing of the server."""
    assert_no_failure(*end(plane, side, ending, blocking=blocking), ending.reported)


def test_denied_connect_is_no_failure(plane: Plane, blocking: bool) -> None:
    """What a foreign program denies has not left, whatever the socket did before."""

    def denied(scene: Scene) -> None:
        for _ in range(TIMES):
            sock = scene.reused()
            with foreign_denial(plane.cgroup):
                assert scene.dialled(sock) == "EPERM"
            sock.close()

    assert_no_failure(*end(plane, SIDES[0], Ending(denied, ACCEPTING), blocking=blocking))


def test_segments_that_a_filter_of_this_host_drops_are_no_failure(plane: Plane, side: Side) -> None:
    """A connect whose every segment is dropped on this host ends as an unanswered one does, and is not the server's."""
    with moody_servers(side.real, side.real) as (server, spare), heard(plane) as kinds:
        plane.publish(virtual_server(side.at(PORT), [server.name, real(spare.name, 1, 1)], health=FOR_GOOD))
        with foreign_filter(plane.cgroup):
            ends = dialled_together(Scene(plane, side, server, blocking=True), PAST_A_REPETITION)
        counted = plane.servers(side.at(PORT))[server.name]
    assert ends == ["ETIMEDOUT"] * TIMES
    assert_no_failure(counted, kinds)


def test_connect_without_a_route_is_no_failure(plane: Plane, side: Side, blocking: bool) -> None:
    """A server that this host has no route to was never asked."""
    unrouted = "[2001:db8::1]:80" if side.name == "ipv6" else "192.0.2.1:80"
    with moody_servers(side.real, side.real) as (dead, spare), heard(plane) as kinds:
        dead.refuse()
        plane.publish(
            virtual_server(side.at(PORT), [unrouted, real(spare.name, 1, 1)], health=FOR_GOOD),
            virtual_server(side.at(OTHER), [dead.name], health=FOR_GOOD),
        )
        scene = Scene(plane, side, dead, blocking=blocking)
        for _ in range(TIMES):
            sock = scene.reused()
            assert scene.dialled(sock) == "ENETUNREACH"
            sock.close()
        counted = plane.servers(side.at(PORT))[unrouted]
    assert_no_failure(counted, kinds)


@pytest.mark.parametrize("error", ERRORS)
def test_server_that_a_router_keeps_away_fails(plane: Plane, side: Side, blocking: bool, error: str) -> None:
    """ICMP errors count where the kernel tells them from the application's own ending; silence always does."""
    host = host_behind(error, ipv6=side.name == "ipv6")
    name = f"[{host}]:80" if ":" in host else f"{host}:80"
    silent = error == "nothing"
    with router(), moody_servers(side.real) as (spare,), heard(plane) as kinds:
        plane.publish(virtual_server(side.at(PORT), [name, real(spare.name, 1, 1)], health=FOR_GOOD))
        ends = dialled_together(Scene(plane, side, spare, blocking=blocking), 1 if silent else 0)
        counted = plane.servers(side.at(PORT))[name]
    assert set(ends) <= ({"ETIMEDOUT"} if silent else {"EHOSTUNREACH", "ECONNREFUSED", "EACCES"})
    if TELLS_ICMP or silent or counted.failures:
        assert (counted.connects, counted.failures, counted.active, counted.times_ejected) == (TIMES, TIMES, 0, 1)
        assert kinds == {Kind.SENT: TIMES, Kind.FAILED: TIMES, Kind.EJECTED: 1}
    else:
        assert_no_failure(counted, kinds)


def test_every_ending_is_counted_out_where_ejection_is_off(plane: Plane, side: Side) -> None:
    """Without passive health the active connections are right after each ending, and no failure is counted."""
    with moody_servers(side.real, side.real) as (dead, silent):
        dead.refuse()
        silent.fall_silent()
        unwatched = replace(FOR_GOOD, eject_after=0)
        for server, endings in ((dead, [refused]), (silent, [timed_out, shut_down(socket.SHUT_WR), dissolved])):
            plane.publish(virtual_server(side.at(PORT), [server.name], health=unwatched))
            for ending in endings:
                ending(Scene(plane, side, server, blocking=False))
                counted = plane.servers(side.at(PORT))[server.name]
                assert (counted.failures, counted.active) == (0, 0)
