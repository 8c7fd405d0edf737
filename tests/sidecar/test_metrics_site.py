"""A port of `--metrics` that another program has: the error is told, and tries go on until the port is free."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import ClassVar, NoReturn

import pytest
from structlog.testing import capture_logs

from clb_discovery.datapath.instance import Instance
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.server import Site
from clb_discovery.sidecar import metrics_site
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.metrics_site import MetricsSite
from clb_discovery.sidecar.self_report import SelfReport
from tests.support.process import free_port


async def no_report() -> None:
    """Return nothing: no page is read here."""


async def accepts(port: int) -> bool:
    """Tell whether something listens."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


def test_port_in_use_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is logged once and reported while the port is in use; then it is gone, and the site is served."""
    monkeypatch.setattr(metrics_site, "FIRST_PAUSE", 0.01)
    errors: asyncio.Queue[str | None] = asyncio.Queue()
    report = SelfReport(Instance("test"))
    waiting = MetricsSite(Announcer(), report, lambda: errors.put_nowait(report.metrics_error))

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            site = Site(no_report, lambda: True, Meters())  # type: ignore[arg-type]  # never called
            async with waiting.serving(("127.0.0.1", port), site):
                assert "Address already in use" in str(await errors.get())
                await asyncio.sleep(0.1)
                taken.close()
                assert await errors.get() is None
                assert await accepts(port)
            assert not await accepts(port)

    with capture_logs() as lines:
        asyncio.run(asyncio.wait_for(run(), 20))
    assert [line["event"] for line in lines] == ["cannot serve metrics", "metrics are served"]


class Broken(Meters):
    """Meters with one bug."""

    bugs: ClassVar = [KeyError("lag")]

    async def watch_lag(self) -> NoReturn:
        """Raise once."""
        if self.bugs:
            raise self.bugs.pop()
        await super().watch_lag()


def test_site_that_a_bug_has_ended_is_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug is reported as the reason why metrics are not served; after a pause they are."""
    monkeypatch.setattr(metrics_site, "LONGEST_PAUSE", 0.01)
    errors: asyncio.Queue[str | None] = asyncio.Queue()
    report = SelfReport(Instance("test"))
    waiting = MetricsSite(Announcer(), report, lambda: errors.put_nowait(report.metrics_error))

    async def run() -> None:
        port = free_port()
        site = Site(no_report, lambda: True, Broken())  # type: ignore[arg-type]  # never called
        async with waiting.serving(("127.0.0.1", port), site):
            assert str(await errors.get()).startswith("internal error: KeyError('lag') at ")
            assert await errors.get() is None
            assert await accepts(port)

    with capture_logs() as lines:
        asyncio.run(asyncio.wait_for(run(), 20))
    assert [line["event"] for line in lines] == ["cannot serve metrics", "metrics are served"]


def test_end_while_the_port_is_in_use() -> None:
    """A sidecar that stops does not wait for the port."""
    report = SelfReport(Instance("test"))

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            site = Site(no_report, lambda: True, Meters())  # type: ignore[arg-type]  # never called
            waiting = MetricsSite(Announcer(), report, lambda: None)
            async with waiting.serving(taken.getsockname(), site):
                await asyncio.sleep(0.05)

    with capture_logs():
        asyncio.run(asyncio.wait_for(run(), 5))
    assert report.metrics_error
