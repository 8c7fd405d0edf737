"""Every ending of a TCP connect before it is established, whether it counts against the real server, and its cause.

If the other end ends a connect or nothing answers, that is a failure. If the application gives it up, its time decides:
a connect that was unanswered for `silent_after_ms` is a failure, too. What never left this host is no sign about the
server.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from clb_discovery.documents.causes import Cause, by_cause
from clb_discovery.documents.trace import Kind
from clb_discovery.layout.elements import Server
from clb_discovery.model.servers import PassiveHealth
from tests.support.cgroups import inside
from tests.support.heard import heard
from tests.support.kernel_objects import foreign_denial, foreign_filter
from tests.support.kernel_version import KERNEL
from tests.support.moody import MoodyServer, moody_servers
from tests.support.plane import Plane, default_plane, real, virtual_server
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

PATIENT: Final = 60_000
"""Milliseconds after which silence counts, longer than any test takes."""
FOR_GOOD: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000, silent_after_ms=PATIENT)
SILENT_AFTER: Final = 100
IMPATIENT: Final = replace(FOR_GOOD, silent_after_ms=SILENT_AFTER)
OTHER: Final = PORT + 1
TIMES: Final = 3
"""So many consecutive failures eject a server."""
PAST_A_REPETITION: Final = 1500
"""Milliseconds of patience (TCP_USER_TIMEOUT) in which the kernel repeats a SYN once, after a second."""
ESTABLISHED: Final = 1
SYN_SENT: Final = 2
TELLS_ICMP: Final = KERNEL >= (6, 11)
"""In older kernels without a backport, programs see an ICMP error as a shutdown."""
_plane_of_module = default_plane


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


@pytest.fixture(params=[False, True], ids=["polled", "blocking"])
def blocking(request: pytest.FixtureRequest) -> bool:
    """Return whether the application waits in connect(2), or is notified by poll(2)."""
    found: bool = request.param
    return found


class Scene:
    """An application whose virtual server has one server, and a spare in the next tier."""

    def __init__(self, plane: Plane, side: Side, server: MoodyServer, *, blocking: bool, pause: float = 0) -> None:
        """Take what connects need.

        :param pause: seconds for which the application waits before it gives up.
        """
        self.plane = plane
        self.target = side.target(PORT)
        self.side = side
        self.server = server
        self.blocking = blocking
        self.pause = pause

    def active(self) -> int:
        """Return how many connections the server has."""
        return self.plane.active(self.side.at(PORT))[self.server.name]

    def make(self, count: int = 1) -> list[socket.socket]:
        """Make sockets that block or have a time-out, with which Python polls."""
        made = self.plane.client.make(self.target, count)
        for sock in made:
            sock.settimeout(None if self.blocking else 20)
        return made

    def dialled(self, sock: socket.socket, patience_ms: int = 0) -> str:
        """Connect until it ends; return the result, `ok` or the name of the errno.

        :param patience_ms: when the kernel gives up, at its next timer; 0: by its own time-out.
        """
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        found = outcome(sock, self.target)
        # An ICMP error that comes while the kernel holds the socket's lock does not end the connect: the next one does.
        # On Linux 6.1 it may wake a poll all the same, in 1 of 40 connects, so that Python takes the connect for over.
        wait_until(partial(has_left_syn_sent, sock), "the connect has ended")
        if found == "ok" and state(sock) != ESTABLISHED:
            return errno.errorcode[sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
        return found

    def begun(self, sock: socket.socket) -> socket.socket:
        """Begin a connect, by a socket that does not wait, or waits for a moment (SO_SNDTIMEO); then pause."""
        sock.setblocking(self.blocking)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 10_000))
        assert outcome(sock, self.target) == "EINPROGRESS"
        time.sleep(self.pause)
        return sock

    def patient(self) -> socket.socket:
        """Begin a connect that the kernel does not give up."""
        (sock,) = self.make()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        return self.begun(sock)

    def reused(self, bound: Target | None = None) -> socket.socket:
        """Return a socket that was refused by the only server of another virtual server."""
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
    """Return whether a connect has ended or is established."""
    return state(sock) != SYN_SENT


def refused(scene: Scene) -> None:
    """Let the server answer with a reset."""
    for sock in scene.make(TIMES):
        assert scene.dialled(sock) == "ECONNREFUSED"


def refused_and_repeated(scene: Scene) -> None:
    """Connect several times with the same socket, and be refused each time."""
    (sock,) = scene.make()
    for _ in range(TIMES):
        assert scene.dialled(sock) == "ECONNREFUSED"
        if not scene.blocking:
            assert outcome(sock, scene.target) == "ECONNABORTED"  # prepares the socket for the next one


def refused_fast_open(scene: Scene) -> None:
    """Let the server reset connects with data in their SYN."""
    with fast_open_allowed():
        for sock in scene.make(TIMES):
            sock.setblocking(scene.blocking)
            error_of(sock.sendto, b"hello", socket.MSG_FASTOPEN, scene.target)
            wait_until(partial(has_left_syn_sent, sock), "the server has answered")


def refused_multipath(scene: Scene) -> None:
    """Let the server reset connects of MPTCP sockets."""
    for _ in range(TIMES):
        with multipath(scene.plane.cgroup, scene.target) as sock:
            sock.settimeout(None if scene.blocking else 20)
            assert outcome(sock, scene.target) == "ECONNREFUSED"


def timed_out(scene: Scene) -> None:
    """Let the kernel give up a server that does not answer."""
    assert dialled_together(scene, 1) == ["ETIMEDOUT"] * TIMES


def timed_out_after_a_repetition(scene: Scene) -> None:
    """Let the kernel repeat the SYN before it gives up a server that does not answer."""
    assert dialled_together(scene, PAST_A_REPETITION) == ["ETIMEDOUT"] * TIMES


def timed_out_fast_open(scene: Scene) -> None:
    """Let the kernel give up connects with data in their SYN."""
    with fast_open_allowed():
        sockets = scene.make(TIMES)
        for sock in sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PAST_A_REPETITION)
            error_of(sock.sendto, b"hello", socket.MSG_FASTOPEN, scene.target)
        for sock in sockets:
            wait_until(partial(has_left_syn_sent, sock), "the kernel has given up")


def dialled_together(scene: Scene, patience_ms: int) -> list[str]:
    """Connect with several sockets at once; return the result of each."""
    with ThreadPoolExecutor(TIMES) as threads:
        return list(threads.map(scene.dialled, scene.make(TIMES), [patience_ms] * TIMES))


def shut_down(how: int) -> Callable[[Scene], None]:
    """Return an ending by shutdown(2)."""

    def end(scene: Scene) -> None:
        for _ in range(TIMES):
            scene.patient().shutdown(how)

    return end


def dissolved(scene: Scene) -> None:
    """Give up by a connect(2) to AF_UNSPEC."""
    for _ in range(TIMES):
        dissolve(scene.patient())


def closed(scene: Scene) -> None:
    """Close the socket."""
    for _ in range(TIMES):
        scene.patient().close()


def closed_at_a_time_limit(scene: Scene) -> None:
    """Close the socket when poll(2) or a blocking connect(2) has waited for as long as the application wants."""
    for sock in scene.make(TIMES):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        limit = max(scene.pause, 0.001)
        if scene.blocking:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, round(limit * 1e6)))
        else:
            sock.settimeout(limit)
        assert outcome(sock, scene.target) in {"EINPROGRESS", "timed out"}
        sock.close()


def closed_with_reset(scene: Scene) -> None:
    """Close the socket without lingering."""
    for _ in range(TIMES):
        sock = scene.patient()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()


def closed_multipath(scene: Scene) -> None:
    """Close an MPTCP socket; another socket makes its connect."""
    for _ in range(TIMES):
        scene.begun(multipath(scene.plane.cgroup, scene.target)).close()
    wait_until(lambda: scene.active() == 0, "the kernel has closed the others, too")


def killed(scene: Scene) -> None:
    """Kill the process that waits in connect(2), or in poll(2) for its end."""
    program = f"import socket; socket.create_connection({scene.target!r}, {None if scene.blocking else 60})"
    for _ in range(TIMES):
        with running(inside(scene.plane.cgroup, [sys.executable, "-c", program]), Path(os.devnull)) as process:
            wait_until(lambda: scene.active() == 1, "its connect is on its way")
            time.sleep(scene.pause)
            process.kill()
            process.wait()
        assert scene.active() == 0


def without_a_port(scene: Scene) -> None:
    """Leave no port (EADDRNOTAVAIL) for a socket whose previous connect was refused."""
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
    """Let the server reset established connections, and close them."""
    for sock in scene.make(TIMES):
        assert scene.dialled(sock) == "ok"
        peer = scene.server.take()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        sock.settimeout(5)
        with suppress(ConnectionResetError):
            sock.recv(1)
        sock.close()


class Ending(NamedTuple):
    """A way for connects to end."""

    end: Callable[[Scene], None]
    """Ends enough connects for an ejection, if they are failures."""
    mood: Callable[[MoodyServer], None]
    """Prepares the server for it."""
    cause: int = 0
    """Why its connects fail; 0 if they do not."""
    reported: Kind = Kind.GIVEN_UP
    """The outcome that `trace` gets, if they do not."""


SILENT, REFUSING, ACCEPTING = MoodyServer.fall_silent, MoodyServer.refuse, MoodyServer.accept
FAULTS: Final = {
    "refused": Ending(refused, REFUSING, Cause.REFUSED),
    "refused, repeated": Ending(refused_and_repeated, REFUSING, Cause.REFUSED),
    "refused, fast open": Ending(refused_fast_open, REFUSING, Cause.REFUSED),
    "refused, MPTCP": Ending(refused_multipath, REFUSING, Cause.REFUSED),
    "timed out": Ending(timed_out, SILENT, Cause.TIMED_OUT),
    "timed out, repeated": Ending(timed_out_after_a_repetition, SILENT, Cause.TIMED_OUT),
    "timed out, fast open": Ending(timed_out_fast_open, SILENT, Cause.TIMED_OUT),
}
GIVEN_UP: Final = {
    "SHUT_RD": Ending(shut_down(socket.SHUT_RD), SILENT, Cause.SILENT),
    "SHUT_WR": Ending(shut_down(socket.SHUT_WR), SILENT, Cause.SILENT),
    "SHUT_RDWR": Ending(shut_down(socket.SHUT_RDWR), SILENT, Cause.SILENT),
    "AF_UNSPEC": Ending(dissolved, SILENT, Cause.SILENT),
    "close": Ending(closed, SILENT, Cause.SILENT),
    "close at a time limit": Ending(closed_at_a_time_limit, SILENT, Cause.SILENT),
    "close with reset": Ending(closed_with_reset, SILENT, Cause.SILENT),
    "close, MPTCP": Ending(closed_multipath, SILENT, Cause.SILENT),
    "killed": Ending(killed, SILENT, Cause.SILENT),
}
OWN: Final = {
    "EADDRNOTAVAIL": Ending(without_a_port, ACCEPTING),
    "reset later": Ending(reset_later, ACCEPTING, reported=Kind.ESTABLISHED),
}


def possible(endings: dict[str, Ending]) -> list[object]:
    """Return the endings for which this kernel has sockets."""
    lacks = pytest.mark.skipif(not MPTCP_ENABLED.exists(), reason="lacks sockets of multipath TCP")
    return [pytest.param(end, id=name, marks=[lacks] if "MPTCP" in name else []) for name, end in endings.items()]


def end(
    plane: Plane,
    side: Side,
    ending: Ending,
    *,
    blocking: bool,
    health: PassiveHealth = FOR_GOOD,
    pause: float = 0,
) -> tuple[Server, Counter[tuple[Kind, int]]]:
    """End connects to one server in this way; return the counts of the kernel, and the reported outcomes."""
    with moody_servers(*[side.real] * 3) as (server, spare, dead), heard(plane) as kinds:
        ending.mood(server)
        dead.refuse()
        plane.publish(
            virtual_server(side.at(PORT), [server.name, real(spare.name, 1, 1)], health=health),
            virtual_server(side.at(OTHER), [dead.name], health=health),
        )
        ending.end(Scene(plane, side, server, blocking=blocking, pause=pause))
        counted = plane.servers(side.at(PORT))[server.name]
    return counted, kinds


def assert_failure(counted: Server, kinds: Counter[tuple[Kind, int]], cause: int) -> None:
    """Assert that three connects have failed for this cause, and have ejected their server."""
    assert (counted.connects, counted.failures, counted.active, counted.times_ejected) == (TIMES, TIMES, 0, 1)
    assert (by_cause(counted)[Cause(cause)], sum(by_cause(counted).values()), counted.cause) == (TIMES, TIMES, cause)
    assert kinds == {(Kind.SENT, 0): TIMES, (Kind.FAILED, cause): TIMES, (Kind.EJECTED, cause): 1}


def assert_no_failure(counted: Server, kinds: Counter[tuple[Kind, int]], reported: Kind = Kind.GIVEN_UP) -> None:
    """Assert that three connects have left the health of a server as it was."""
    assert (counted.connects, counted.failures, counted.active, counted.ejected_until) == (TIMES, 0, 0, 0)
    assert sum(by_cause(counted).values()) == 0
    assert kinds == {(Kind.SENT, 0): TIMES, (reported, 0): TIMES}


@pytest.mark.parametrize("ending", possible(FAULTS))
def test_connect_that_the_other_end_ends_is_a_failure(plane: Plane, side: Side, ending: Ending, blocking: bool) -> None:
    """A refused connect and an unanswered one count, each with its cause, and three of them eject the server."""
    assert_failure(*end(plane, side, ending, blocking=blocking), ending.cause)


@pytest.mark.parametrize("ending", possible(GIVEN_UP))
def test_connect_that_is_given_up_soon_is_no_failure(plane: Plane, side: Side, ending: Ending, blocking: bool) -> None:
    """Connects that the application gives up before silence counts are not counted against the server."""
    assert_no_failure(*end(plane, side, ending, blocking=blocking))


@pytest.mark.parametrize("ending", possible(GIVEN_UP))
def test_connect_that_is_given_up_late_is_a_failure(plane: Plane, side: Side, ending: Ending, blocking: bool) -> None:
    """However the application gives it up, a connect that was unanswered for long enough counts as silence."""
    assert_failure(
        *end(plane, side, ending, blocking=blocking, health=IMPATIENT, pause=2 * SILENT_AFTER / 1000), Cause.SILENT
    )


def test_silence_can_count_for_nobody(plane: Plane, side: Side, blocking: bool) -> None:
    """Without a time, giving up never counts."""
    never = replace(FOR_GOOD, silent_after_ms=0)
    assert_no_failure(*end(plane, side, GIVEN_UP["close"], blocking=blocking, health=never, pause=0.1))


def test_connect_that_is_not_watched_has_its_cause_in_the_trace(plane: Plane, blocking: bool) -> None:
    """Where no server is ejected nothing is counted, but an outcome is the same."""
    health = replace(IMPATIENT, eject_after=0)
    counted, kinds = end(plane, SIDES[0], GIVEN_UP["close"], blocking=blocking, health=health, pause=0.2)
    assert (counted.failures, counted.silent) == (0, 0)
    assert kinds == {(Kind.SENT, 0): TIMES, (Kind.FAILED, Cause.SILENT): TIMES}


@pytest.mark.parametrize("ending", possible(OWN))
def test_connect_that_this_host_ends_is_no_failure(plane: Plane, side: Side, ending: Ending, blocking: bool) -> None:
    """Connects that cannot leave the host are not counted against the server, however soon silence counts."""
    health = replace(FOR_GOOD, silent_after_ms=1)
    assert_no_failure(*end(plane, side, ending, blocking=blocking, health=health), ending.reported)


def test_denied_connect_is_no_failure(plane: Plane, blocking: bool) -> None:
    """A connect that a foreign program denies has not left the host, with any history of the socket."""

    def denied(scene: Scene) -> None:
        for _ in range(TIMES):
            sock = scene.reused()
            with foreign_denial(plane.cgroup):
                assert scene.dialled(sock) == "EPERM"
            sock.close()

    assert_no_failure(*end(plane, SIDES[0], Ending(denied, ACCEPTING), blocking=blocking))


def test_segments_that_a_filter_of_this_host_drops_are_no_failure(plane: Plane, side: Side) -> None:
    """A connect with all segments dropped on this host looks unanswered, and does not count against the server."""
    with moody_servers(side.real, side.real) as (server, spare), heard(plane) as kinds:
        health = replace(FOR_GOOD, silent_after_ms=1)
        plane.publish(virtual_server(side.at(PORT), [server.name, real(spare.name, 1, 1)], health=health))
        with foreign_filter(plane.cgroup):
            ends = dialled_together(Scene(plane, side, server, blocking=True), PAST_A_REPETITION)
        counted = plane.servers(side.at(PORT))[server.name]
    assert ends == ["ETIMEDOUT"] * TIMES
    assert_no_failure(counted, kinds)


@pytest.mark.parametrize(
    ("give_up", "patience"), [(socket.socket.close, 3.3), (lambda sock: sock.shutdown(socket.SHUT_RD), 1.3)]
)
def test_segments_that_a_filter_drops_are_no_silence(
    plane: Plane, side: Side, give_up: Callable[[socket.socket], None], patience: float
) -> None:
    """An application that gives up after its SYN could not be repeated has not waited for the server."""
    with moody_servers(side.real, side.real) as (server, spare), heard(plane) as kinds:
        health = replace(FOR_GOOD, silent_after_ms=1)
        plane.publish(virtual_server(side.at(PORT), [server.name, real(spare.name, 1, 1)], health=health))
        with foreign_filter(plane.cgroup):
            scene = Scene(plane, side, server, blocking=False)
            sockets = [scene.patient() for _ in range(TIMES)]
            time.sleep(patience)
            for sock in sockets:
                give_up(sock)
        counted = plane.servers(side.at(PORT))[server.name]
    assert_no_failure(counted, kinds)


def test_connect_without_a_route_is_no_failure(plane: Plane, side: Side, blocking: bool) -> None:
    """A connect without a route does not reach the server, and does not count against it."""
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
    """ICMP errors count if the kernel distinguishes them from an ending by the application; silence always does."""
    host = host_behind(error, ipv6=side.name == "ipv6")
    name = f"[{host}]:80" if ":" in host else f"{host}:80"
    silent = error == "nothing"
    with router(), moody_servers(side.real) as (spare,), heard(plane) as kinds:
        plane.publish(virtual_server(side.at(PORT), [name, real(spare.name, 1, 1)], health=FOR_GOOD))
        ends = dialled_together(Scene(plane, side, spare, blocking=blocking), 1 if silent else 0)
        counted = plane.servers(side.at(PORT))[name]
    assert set(ends) <= ({"ETIMEDOUT"} if silent else {"EHOSTUNREACH", "ECONNREFUSED", "EACCES"})
    if TELLS_ICMP or silent or counted.failures:
        assert_failure(counted, kinds, Cause.TIMED_OUT if silent else Cause.UNREACHABLE)
    else:
        assert_no_failure(counted, kinds)


def test_every_ending_is_counted_out_where_ejection_is_off(plane: Plane, side: Side) -> None:
    """Without passive health the active connections are exact after each ending, and no failure is counted."""
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


def test_silence_of_a_router_counts_when_it_is_given_up(plane: Plane, side: Side, blocking: bool) -> None:
    """A server whose packets are lost on the way is silent, as one that drops them itself."""
    host = host_behind("nothing", ipv6=side.name == "ipv6")
    name = f"[{host}]:80" if ":" in host else f"{host}:80"
    with router(), moody_servers(side.real) as (spare,), heard(plane) as kinds:
        plane.publish(virtual_server(side.at(PORT), [name, real(spare.name, 1, 1)], health=IMPATIENT))
        closed(Scene(plane, side, spare, blocking=blocking, pause=2 * SILENT_AFTER / 1000))
        counted = plane.servers(side.at(PORT))[name]
    assert_failure(counted, kinds, Cause.SILENT)


def test_time_of_silence_is_measured_in_ticks_of_this_kernel(plane: Plane) -> None:
    """A connect that is given up well before that time does not count, and one well after it does."""
    side = SIDES[0]
    health = replace(FOR_GOOD, silent_after_ms=400)
    for pause, failures in ((0.3, 0), (0.45, TIMES)):
        counted, _ = end(plane, side, GIVEN_UP["close"], blocking=False, health=health, pause=pause)
        assert (counted.failures, counted.silent) == (failures, failures)
        plane.clear()
