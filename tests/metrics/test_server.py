"""The server behind `--metrics`, under many requests and with slow responses."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import Final

import aiohttp
import pytest
import structlog

from clb_discovery.documents.status import Datapath
from clb_discovery.layout.installed import Installed
from clb_discovery.metrics import connections
from clb_discovery.metrics import server as web
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.metrics.server import Site, listen
from clb_discovery.sidecar.announcer import Announcer

UNLOADED: Final = Datapath(None, Installed(), {}, None, 0)
PART: Final = 1 << 18
"""Bytes that the client reads between two new connections of others."""


def serving(listener: socket.socket, site: Site) -> AbstractAsyncContextManager[None]:
    """Serve like the sidecar, which logs problems."""
    return web.serving(listener, site, Announcer().trouble)


class SlowReports:
    """Reports that wait until the test releases them."""

    def __init__(self) -> None:
        self.begun = 0
        self.asked = asyncio.Event()
        self.released = asyncio.Event()

    async def report(self) -> Report:
        """Return a report once the test allows it."""
        self.begun += 1
        self.asked.set()
        await self.released.wait()
        return Report("default", UNLOADED, (), {"config_error": str(self.begun), "last_sync": None})


async def test_many_share_work_and_probes_wait_for_nobody() -> None:
    """Fifty simultaneous requests cost three reports at most, one after the other, and /healthz responds meanwhile."""
    reports = SlowReports()
    with listen("127.0.0.1", 0) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        site = Site(reports.report, lambda: True, Meters())
        async with (
            serving(listener, site),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):

            async def get(path: str) -> str:
                async with session.get(origin + path) as answer:
                    assert answer.status == 200
                    return await answer.text()

            first = asyncio.create_task(get("/metrics"))
            await reports.asked.wait()
            others = [asyncio.create_task(get(path)) for path in ("/metrics", "/status.json") * 25]
            for _ in range(10):
                assert await get("/healthz") == "ready\n"
            assert reports.begun == 1
            impatient = others.pop()
            impatient.cancel()
            reports.released.set()
            answers = await asyncio.gather(first, *others)
            assert reports.begun == 3
            assert "clb_datapath_effective 0.0" in answers[0]
            assert len({answer for answer in answers if answer.startswith("{")}) == 1


async def test_a_report_that_fails_is_an_error_for_its_requests() -> None:
    """They get 503 and the reason, and the next request gets a new report."""
    failures = [OSError(errno.ENOENT, "No such file or directory")]

    async def report() -> Report:
        if failures:
            raise failures.pop()
        return Report("default", UNLOADED, (), {"config_error": None, "last_sync": None})

    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        async with (
            serving(listener, Site(report, lambda: True, Meters())),
            aiohttp.ClientSession() as session,
        ):
            async with session.get(url) as answer:
                assert (answer.status, await answer.text()) == (503, "[Errno 2] No such file or directory\n")
            async with session.get(url) as answer:
                assert answer.status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(150),
    ],
)
async def test_faults_of_clients_are_logged_at_debug(request_: bytes) -> None:
    """A bad request, or a connection that is broken off, is logged at no higher level."""
    reports = SlowReports()
    with listen("127.0.0.1", 0) as listener, structlog.testing.capture_logs() as logged:
        async with serving(listener, Site(reports.report, lambda: True, Meters())):
            for resets in (True, False):
                with socket.create_connection(listener.getsockname()) as client:
                    client.sendall(request_)
                    if resets:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        await asyncio.sleep(0.2)
                await asyncio.sleep(0.2)
    assert {one["log_level"] for one in logged} <= {"debug"}


async def test_a_client_that_reads_nothing_costs_no_copy_of_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty clients that request 16 MiB and read nothing cost little more than one. One that reads gets it all."""
    size = 16 << 20
    monkeypatch.setattr(web, "exposition", lambda *_: bytes(size))
    reports = SlowReports()
    reports.released.set()
    with listen("127.0.0.1", 0) as listener, ExitStack() as clients:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        async with (
            serving(listener, Site(reports.report, lambda: True, Meters())),
            aiohttp.ClientSession() as session,
        ):
            tracemalloc.start()
            clients.callback(tracemalloc.stop)
            for _ in range(20):
                client = clients.enter_context(socket.create_connection(listener.getsockname()))
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(1)
            assert tracemalloc.get_traced_memory()[1] < 6 * size
            async with session.head(url) as head, session.get(url) as answer:
                assert head.headers["Content-Length"] == answer.headers["Content-Length"] == str(size)
                assert len(await answer.read()) == size


async def test_a_client_that_reads_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scraper gets a long response, although others open four times as many connections as are allowed."""
    size = 64 << 20
    monkeypatch.setattr(web, "exposition", lambda *_: bytes(size))
    reports = SlowReports()
    reports.released.set()
    with listen("127.0.0.1", 0) as listener, ExitStack() as others:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        async with (
            serving(listener, Site(reports.report, lambda: True, Meters())),
            aiohttp.ClientSession() as session,
            session.get(url) as answer,
        ):
            got = 0
            async for part in answer.content.iter_any():
                if got // PART < (got := got + len(part)) // PART:
                    others.enter_context(socket.create_connection(listener.getsockname()))
                await asyncio.sleep(0)
            assert got == size


async def test_connection_that_a_bug_has_ended_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is not left waiting, asyncio logs the bug, and the next connection is served."""
    reports, bugs = SlowReports(), [KeyError("connection")]
    loop = asyncio.get_running_loop()
    begin = loop.connect_accepted_socket
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    async def broken(make: Callable[[], asyncio.Protocol], accepted: socket.socket) -> object:
        if bugs:
            raise bugs.pop()
        return await begin(make, accepted)

    monkeypatch.setattr(loop, "connect_accepted_socket", broken)
    monkeypatch.setattr(connections, "MOST", 1)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/healthz"
        async with (
            serving(listener, Site(reports.report, lambda: True, Meters())),
            aiohttp.ClientSession() as session,
            session.get(url) as answer,  # aiohttp tries again
        ):
            assert answer.status == 200
    assert list(map(repr, reported)) == ["KeyError('connection')"]


async def test_lag_is_measured() -> None:
    """A loop that is blocked for a quarter of a second has that much lag."""
    meters = Meters()
    watching = asyncio.create_task(meters.watch_lag())
    try:
        await asyncio.sleep(0)  # the measurement begins, and lasts a second
        time.sleep(1.25)  # noqa: ASYNC251 - the fault that is measured
        await asyncio.sleep(0.01)  # the overdue timer fires first
    finally:
        watching.cancel()
    assert (meters.registry.get_sample_value("clb_loop_lag_seconds_sum") or 0) >= 0.25
