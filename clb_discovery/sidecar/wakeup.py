"""Wait for events, and handle a burst of them once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

QUIET: Final = 0.05
"""Seconds without an event after which a burst is over."""
QUIET_LIMIT: Final = 0.5
"""Seconds after which a burst is handled even if it goes on."""


class Wakeup:
    """A bell that sources, signals and the main loop itself ring. For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.is_stopping = False
        """Whether the sidecar has to end."""
        self.is_reloading = False
        """Whether the configuration has to be read again; for the reader to clear."""

    def stop(self) -> None:
        """Request the end of the sidecar."""
        self.is_stopping = True
        self.ring()

    def reload(self) -> None:
        """Request a reload of the configuration."""
        self.is_reloading = True
        self.ring()

    def ring(self) -> None:
        """Report an event. Ringing without a change only delays the others."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return when an event has come and its burst is over, or else when the time is over."""
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
