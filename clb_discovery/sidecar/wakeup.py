"""Waiting for something to happen, so that a burst of it is handled once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

QUIET: Final = 0.05
"""Seconds without a further word after which a burst is taken as over."""
QUIET_LIMIT: Final = 0.5
"""Seconds after which a burst is handled although it goes on."""


class Wakeup:
    """A bell that sources, signals and the main loop itself ring. For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Say that something has happened. Whoever rings without a change only keeps the others waiting."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return when there are news and the burst that they belong to is over, or else when the time is over."""
        if not await self._rung_within(seconds):
            return
        loop = asyncio.get_running_loop()
        limit = loop.time() + QUIET_LIMIT
        while loop.time() < limit and await self._rung_within(QUIET):
            pass

    async def _rung_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        rung = self._event.is_set()
        self._event.clear()
        return rung
