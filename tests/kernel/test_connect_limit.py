"""When the kernel gives up a connect that no server answers, for each kind of socket and each way to wait for it."""

from __future__ import annotations

import errno
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath import probe
from clb_discovery.documents.causes import Cause, by_cause
from clb_discovery.layout.structs import FEATURE_OPTIONS
from clb_discovery.model.servers import PassiveHealth
from tests.support.io_uring import connect_by_io_uring
from tests.support.moody import MoodyServer, moody_servers
from tests.support.plane import NO_TRACKING, Plane, virtual_server
from tests.support.sidecar import sidecar, status
from tests.support.sockets import SocketMaker, socket_maker
from tests.support.spares import loaded_instance
from tests.support.transparency import MPTCP_ENABLED, PORT, SIDES, Side, error_of, fast_open_allowed, multipath

instance = loaded_instance

PATIENT: Final = PassiveHealth(eject_after=100)
"""Counts failures, and ejects no server here."""
LIMITS: Final = (200, 1_000, 5_000, 10_000, 20_000)
"""Milliseconds, for one to four repetitions of the SYN."""
SHORT: Final = 1_000
WAYS: Final = ("blocking", "polled", "io_uring", "fast open", "fast open, polled", "MPTCP", "MPTCP, polled")
"""Kinds of sockets, and ways to wait for them."""
POSSIBLE: Final = [way for way in WAYS if not way.startswith("MPTCP") or MPTCP_ENABLED.exists()]
KERNELS_OWN: Final = 3.0
"""Seconds until the kernel gives up a connect with one repetition, without any limit."""
USUAL: Final = int(Path("/proc/sys/net/ipv4/tcp_syn_retries").read_text())
"""Repetitions of a SYN of an application that does not set their number."""


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


@contextmanager
def silent(plane: Plane, side: Side, *limits: int, health: PassiveHealth = PATIENT) -> Iterator[MoodyServer]:
    """Publish a virtual server for each limit, all with one server, which answers nothing."""
    with moody_servers(side.real) as (server,):
        server.fall_silent()
        plane.publish(
            *(
                virtual_server(side.at(PORT, number), [server.name], health=replace(health, connect_timeout_ms=limit))
                for number, limit in enumerate(limits, 1)
            )
        )
        yield server


def made(plane: Plane, side: Side, way: str = "blocking") -> socket.socket:
    """Return a socket that blocks, and has no time-out of its own."""
    target = side.target(PORT)
    if way.startswith("MPTCP"):
        sock = multipath(plane.cgroup, target)
    else:
        (sock,) = plane.client.make(target)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
    sock.settimeout(None)
    return sock


def polled(sock: socket.socket, begin: Callable[[], object]) -> str:
    """Begin a connect without waiting, and let poll(2) report its end."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        begin()
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    assert waiting.poll(60_000)
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[number] if number else "ok"


def dialled(sock: socket.socket, target: tuple[str, int], way: str = "blocking") -> tuple[str, float]:
    """Connect in one of `WAYS`; return the name of its error, and the seconds until it came."""
    connect = partial(sock.connect, target)
    send = partial(sock.sendto, b"hello", socket.MSG_FASTOPEN, target)
    begun = time.monotonic()
    match way:
        case "io_uring":
            error = connect_by_io_uring(sock, target)
        case "fast open":
            error = error_of(send)
        case "polled" | "MPTCP, polled":
            error = polled(sock, connect)
        case "fast open, polled":
            error = polled(sock, send)
        case _:
            error = error_of(connect)
    return error, time.monotonic() - begun


def together(*calls: Callable[[], tuple[str, float]]) -> Sequence[tuple[str, float]]:
    """Make all connects at once; return their results."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [one.result() for one in [threads.submit(call) for call in calls]]


def repetitions(sock: socket.socket) -> int:
    """Return how often the kernel repeats the SYN of a socket."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT)


def is_in_time(end: tuple[str, float], limit_ms: int) -> bool:
    """Return whether a connect took as long as its limit, or up to a tenth and 50 ms more or less."""
    return abs(end[1] - limit_ms / 1000) <= 0.1 * limit_ms / 1000 + 0.05


def assert_in_time(end: tuple[str, float], limit_ms: int) -> None:
    """Assert that a connect timed out at its limit."""
    assert end[0] == "ETIMEDOUT"
    assert is_in_time(end, limit_ms), f"{end[1]:.3f} s instead of {limit_ms} ms"


def test_unanswered_connect_ends_at_its_limit(plane: Plane, side: Side) -> None:
    """It ends with ETIMEDOUT whatever waits for it, and the server has a failure with that cause."""
    limits = LIMITS if plane.is_default else LIMITS[:3]
    with silent(plane, side, *limits) as server, fast_open_allowed():
        connects = [(number, way) for number in range(1, len(limits) + 1) for way in POSSIBLE]
        sockets = [made(plane, side, way) for _, way in connects]
        ends = together(
            *(
                partial(dialled, sock, side.target(PORT, number), way)
                for sock, (number, way) in zip(sockets, connects, strict=True)
            )
        )
        for sock in sockets:
            sock.close()
        for (number, way), (error, took) in zip(connects, ends, strict=True):
            print(f"{side.name} {limits[number - 1]} ms {way}: {error} after {took:.3f} s")
        again = 0
        for (number, way), end in zip(connects, ends, strict=True):
            found, limit = end, limits[number - 1]
            if limit <= SHORT and not is_in_time(found, limit):  # a busy machine wakes many threads late
                again += 1
                with made(plane, side, way) as sock:
                    found = dialled(sock, side.target(PORT, number), way)
            assert_in_time(found, limit)
        counts = [plane.servers(side.at(PORT, number))[server.name] for number in range(1, len(limits) + 1)]
        assert sum(one.connects for one in counts) == len(connects) + again
        for counted in counts:
            timed_out = by_cause(counted)[Cause.TIMED_OUT]
            assert (counted.failures, timed_out, counted.active) == (counted.connects, counted.connects, 0)


def test_limit_needs_no_passive_health(plane: Plane, side: Side) -> None:
    """Without ejection and counts it works as well, and leaves no record behind."""
    with silent(plane, side, 1_000, health=NO_TRACKING):
        sockets = [made(plane, side, way) for way in POSSIBLE]
        ends = together(
            *(partial(dialled, sock, side.target(PORT), way) for sock, way in zip(sockets, POSSIBLE, strict=True))
        )
        for end in ends:
            assert_in_time(end, 1_000)
        assert not any(plane.has_record(sock) for sock in sockets)
        for sock in sockets:
            sock.close()


def test_shorter_limit_of_the_application_stays(plane: Plane, side: Side) -> None:
    """Its own repetitions, its own time and its own close come first."""

    def closed(sock: socket.socket) -> tuple[str, float]:
        sock.settimeout(0.5)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            sock.connect(side.target(PORT))
        sock.close()
        return "closed", time.monotonic() - begun

    with silent(plane, side, 20_000):
        repeated, timed, given_up = (made(plane, side) for _ in range(3))
        repeated.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        timed.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 800)
        ends = together(
            partial(dialled, repeated, side.target(PORT)),
            partial(dialled, timed, side.target(PORT)),
            partial(closed, given_up),
        )
        assert [error for error, _ in ends] == ["ETIMEDOUT", "ETIMEDOUT", "closed"]
        assert ends[0][1] < KERNELS_OWN
        assert ends[1][1] < 1.2
        assert ends[2][1] < 0.7
        assert repetitions(repeated) == 1
        assert timed.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 800


def test_longer_limit_of_the_application_is_cut(plane: Plane, side: Side) -> None:
    """More repetitions than the limit has room for do not happen; the application finds its setting afterwards."""
    with silent(plane, side, 2_000):
        sock = made(plane, side)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 9)
        assert_in_time(dialled(sock, side.target(PORT)), 2_000)
        assert repetitions(sock) == 9 or not probe.features() & FEATURE_OPTIONS


def test_without_a_limit_the_kernel_decides(plane: Plane, side: Side) -> None:
    """With `off`, and for a connect to another address, timers and repetitions are those of the kernel."""
    with silent(plane, side, 0) as server, moody_servers(side.real) as (other,):
        other.fall_silent()
        host, port = other.target
        sockets = [made(plane, side) for _ in range(2)]
        for sock in sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        targets = [side.target(PORT), (f"::ffff:{host}" if side.name == "mapped" else host, port)]
        ends = together(*(partial(dialled, *one) for one in zip(sockets, targets, strict=True)))
        for error, took in ends:
            assert error == "ETIMEDOUT"
            assert KERNELS_OWN - 0.05 < took < KERNELS_OWN + 0.4
        assert plane.connects(side.at(PORT)) == {server.name: 1}


@pytest.mark.parametrize("waits", [False, True], ids=["answered at once", "answered after a repetition"])
def test_established_connection_keeps_nothing(plane: Plane, side: Side, *, waits: bool) -> None:
    """Once the server has answered, the socket is as the application has made it."""
    with silent(plane, side, 2_000) as server, ThreadPoolExecutor(1) as thread:
        sock = made(plane, side)
        if not waits:
            server.accept()
        connect = thread.submit(dialled, sock, side.target(PORT))
        time.sleep(0.3)
        server.accept()
        error, took = connect.result()
        assert error == "ok"
        assert (0.4 < took < 1.5) is waits
        if probe.features() & FEATURE_OPTIONS or not waits:
            assert repetitions(sock) == USUAL
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_later_connect_of_the_socket_has_its_own_limit(plane: Plane, side: Side) -> None:
    """A socket that has timed out through one virtual server has the whole time of the next one."""
    with silent(plane, side, 300, 2_500):
        sock = made(plane, side)
        assert_in_time(dialled(sock, side.target(PORT, 1)), 300)
        assert_in_time(dialled(sock, side.target(PORT, 2)), 2_500)
        assert repetitions(sock) == USUAL or not probe.features() & FEATURE_OPTIONS


def test_each_service_has_its_limit(instance: str, cgroup: Path, config: Path) -> None:
    """A limit alone is enough for the program that follows connects to be attached, and a reload changes it."""
    table = '[[service]]\nname = "web"\nvip = "10.64.0.1:80"\nservers = ["{}"]\nconnect-timeout = "{}"\n'
    lean = 'real-range = ["127.0.0.0/8"]\nno-active = true\neject-after = 0\n'
    with moody_servers("127.0.0.1") as (server,):
        server.fall_silent()
        config.write_text(lean + table.format(server.name, "300ms"))
        with (
            sidecar(instance, cgroup, config.parent, ["--config", str(config)]) as found,
            socket_maker(cgroup) as maker,
        ):
            assert status(instance)["datapath"]["outcomes"]
            assert_in_time(limited(maker), 300)
            config.write_text(lean + table.format(server.name, "1500ms"))
            found.process.send_signal(signal.SIGHUP)
            changed = ["connect-timeout 300ms -> 1500ms"]
            found.wait_for(lambda: changed in [line.get("settings") for line in found.lines()], "it is published")
            assert_in_time(limited(maker), 1_500)


def limited(maker: SocketMaker) -> tuple[str, float]:
    """Connect through the VIP of the sidecar, without a limit of the application's own."""
    target = ("10.64.0.1", 80)
    (sock,) = maker.make(target)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
    sock.settimeout(None)
    return dialled(sock, target)
