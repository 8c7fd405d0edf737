"""The server of `--metrics`, which waits as long as another program has its port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from clb_discovery.errors import ClbError
from clb_discovery.metrics.server import Site, listen, serving
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.self_report import SelfReport
from clb_discovery.stderr import internal_error

FIRST_PAUSE: Final = 1.0
"""Seconds until the second try to listen; each further pause is twice as long."""
LONGEST_PAUSE: Final = 30.0

_log = structlog.stdlib.get_logger()


class MetricsSite:
    """Serves the page and the metrics. Connects need neither, so a port that is in use does not end the sidecar."""

    def __init__(self, announcer: Announcer, self_report: SelfReport, changed: Callable[[], None]) -> None:
        """Prepare; `changed` is called when the report has another error, or none."""
        self._announcer = announcer
        self._self_report = self_report
        self._changed = changed

    @asynccontextmanager
    async def serving(self, address: tuple[str, int], site: Site) -> AsyncIterator[None]:
        """Serve while the block runs, as soon as the port is free; again after a bug."""
        task = asyncio.create_task(self._serve(address, site))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _serve(self, address: tuple[str, int], site: Site) -> None:
        while True:
            try:
                with await self._listener(address) as listener:
                    async with serving(listener, site, self._announcer.trouble):
                        await asyncio.Event().wait()  # until this is cancelled
            except* Exception as failed:  # noqa: BLE001 - a bug must not end this task in silence
                self._report(internal_error(failed.exceptions[0]))
            await asyncio.sleep(LONGEST_PAUSE)

    async def _listener(self, address: tuple[str, int]) -> socket.socket:
        pause = FIRST_PAUSE
        while True:
            try:
                listener = listen(*address)
            except ClbError as error:
                self._report(str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if self._self_report.metrics_error:
                    _log.info("metrics are served")
                self._report(None)
                return listener

    def _report(self, error: str | None) -> None:
        self._announcer.trouble("cannot serve metrics", error)
        if error != self._self_report.metrics_error:
            self._self_report.metrics_error = error
            self._changed()
