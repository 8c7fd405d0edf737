"""A probe of real servers: which answers it gets, and that the application there learns nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clb_discovery.model.address import parse_address
from clb_discovery.sidecar.health import probe as probes
from clb_discovery.sidecar.health.probe import LIMIT, MOST_LOST, SAMPLE, Result, probe, probe_thoroughly
from tests.support.moody import MoodyServer, moody_servers

HOSTS = ("127.0.0.1", "::1")


def probed(server: MoodyServer, *, twice: bool = True) -> Result:
    """Probe a server."""
    host, port = server.target
    return asyncio.run(probe(parse_address(host), port, twice=twice))


@pytest.mark.parametrize("host", HOSTS)
def test_a_server_that_listens_is_up_and_accepts_nothing(host: str) -> None:
    """Its accept(2) does not return, however often it is probed, and its queue stays empty."""
    with moody_servers(host) as (server,), socket.socket(fileno=os.dup(server.fileno())) as listener:
        for _ in range(20):
            assert probed(server) is Result.UP
        readable, _, _ = select.select([listener], [], [], 0.5)
        assert readable == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_server_that_refuses_is_down_at_once(host: str) -> None:
    """A reset is an answer."""
    with moody_servers(host) as (server,):
        server.refuse()
        began = time.monotonic()
        assert probed(server) is Result.DOWN
        assert time.monotonic() - began < LIMIT


@pytest.mark.parametrize("turns", range(7))
def test_a_busy_event_loop_makes_no_server_silent(turns: int) -> None:
    """The time in which the sidecar itself stands still does not count, whatever it has sent by then."""

    async def hold() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(LIMIT + 0.1)  # noqa: ASYNC251 - it is what happens

    async def probed_and_held(address: str, port: int) -> Result:
        found, _ = await asyncio.gather(probe_thoroughly(parse_address(address), port), hold())
        return found

    with moody_servers("127.0.0.1") as (server,):
        assert asyncio.run(probed_and_held(*server.target)) is Result.UP


@pytest.mark.parametrize("twice", [True, False])
def test_a_silent_server_is_down_within_a_second(*, twice: bool) -> None:
    """The verdict has to be there before the programs' suspicion ends."""
    with moody_servers("127.0.0.1") as (server,):
        server.fall_silent()
        began = time.monotonic()
        assert probed(server, twice=twice) is Result.DOWN
        assert LIMIT <= time.monotonic() - began < LIMIT + 1


def test_the_second_try_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lost SYN puts no healthy server out of service."""
    monkeypatch.setattr(probes, "SECOND_TRY", 0.05)
    with moody_servers("127.0.0.1") as (server,):
        server.fall_silent()

        async def recovers() -> Result:
            asyncio.get_running_loop().call_later(0.02, server.accept)
            return await probe(parse_address("127.0.0.1"), server.target[1])

        began = time.monotonic()
        assert asyncio.run(recovers()) is Result.UP
        assert time.monotonic() - began < LIMIT


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({Result.UP: SAMPLE}, Result.UP),
        ({Result.UP: SAMPLE - MOST_LOST, Result.DOWN: MOST_LOST}, Result.UP),
        ({Result.UP: SAMPLE - MOST_LOST - 1, Result.DOWN: MOST_LOST + 1}, Result.DOWN),
        ({Result.DOWN: SAMPLE}, Result.DOWN),
        ({Result.UP: 1, Result.LOCAL: SAMPLE - 1}, Result.UP),
        ({Result.LOCAL: SAMPLE}, Result.LOCAL),
    ],
    ids=str,
)
def test_a_thorough_probe_needs_nearly_all_answers(
    monkeypatch: pytest.MonkeyPatch, answers: dict[Result, int], expected: Result
) -> None:
    """A server that loses packets does not pass by chance, and errors of this host are no evidence."""
    left = [result for result, count in answers.items() for _ in range(count)]

    async def answered(*_: object, **__: object) -> Result:
        return left.pop()

    monkeypatch.setattr(probes, "probe", answered)
    assert asyncio.run(probe_thoroughly(parse_address("127.0.0.1"), 9)) is expected


def test_a_lost_packet_delays_no_thorough_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs pass the server over meanwhile; what is not needed any more is cancelled."""
    cancelled, tries = asyncio.Event(), iter(range(SAMPLE))

    async def answered(*_: object, **__: object) -> Result:
        if next(tries) < MOST_LOST:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return Result.UP

    monkeypatch.setattr(probes, "probe", answered)
    assert asyncio.run(probe_thoroughly(parse_address("127.0.0.1"), 9)) is Result.UP
    assert cancelled.is_set()


def test_a_thorough_probe_is_over_before_the_suspicion() -> None:
    """All its connects are made at the same time, to a silent server as to one that is well."""
    with moody_servers("127.0.0.1") as (server,):
        target = parse_address("127.0.0.1"), server.target[1]
        assert asyncio.run(probe_thoroughly(*target)) is Result.UP
        server.fall_silent()
        began = time.monotonic()
        assert asyncio.run(probe_thoroughly(*target)) is Result.DOWN
        assert time.monotonic() - began < LIMIT + 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOBUFS])
def test_an_error_of_this_host_is_no_evidence(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No route, no permission or no memory: the connect ends in the call."""
    monkeypatch.setattr(socket.socket, "connect_ex", lambda _, __: number)
    assert asyncio.run(probe(parse_address("127.0.0.1"), 9)) is Result.LOCAL


def test_a_kernel_without_permission_is_no_evidence() -> None:
    """The broadcast address is for nobody without SO_BROADCAST, and multicast has no connections."""
    for address in ("255.255.255.255", "224.0.0.1"):
        assert asyncio.run(probe(parse_address(address), 9)) is Result.LOCAL


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    """Allow no more open files while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_is_no_evidence() -> None:
    """A sidecar at its limit of open files keeps no server out."""

    async def without_any() -> Result:
        with descriptors(0):
            return await probe(parse_address("127.0.0.1"), 9)

    assert asyncio.run(without_any()) is Result.LOCAL


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_full_epoll_is_no_evidence(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The user of the sidecar may wait for too many files (fs.epoll.max_user_watches)."""

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    async def with_full_epoll(server: MoodyServer) -> Result:
        monkeypatch.setattr("selectors.EpollSelector.register", full)
        return await probe(parse_address("127.0.0.1"), server.target[1])

    with moody_servers("127.0.0.1") as (server,):
        assert asyncio.run(with_full_epoll(server)) is Result.LOCAL


def descriptors_in_use() -> int:
    """Return the number of open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_probe_that_is_cancelled_leaves_no_socket() -> None:
    """The sidecar ends while probes wait."""
    with moody_servers("127.0.0.1") as (server,):
        server.fall_silent()

        async def cancelled() -> int:
            before = descriptors_in_use()
            task = asyncio.create_task(probe(parse_address("127.0.0.1"), server.target[1]))
            await asyncio.sleep(0.4)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return descriptors_in_use() - before

        assert asyncio.run(cancelled()) == 0
