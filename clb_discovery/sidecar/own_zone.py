"""The zone of this host: the name in the configuration, or that which the agent of Consul has for its node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from clb_discovery.config.options import Options
from clb_discovery.config.sources import own_zone
from clb_discovery.errors import ClbError
from clb_discovery.model.zones import AUTO
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sources.follow import BACKOFF_CAP, BACKOFF_FIRST
from clb_discovery.stderr import internal_error

PATIENCE: Final = 1.0
"""Seconds for which the first publication waits for the agent, so that pools need not be divided twice."""

_log = structlog.stdlib.get_logger()


class OwnZone:
    """The zone as far as it is known. For one event loop.

    The agent is queried at the start and at each reload, until it returns a zone. Until then the previous one stays.
    """

    def __init__(self, announcer: Announcer, changed: Callable[[], None]) -> None:
        """Start without a zone; `changed` is called when there is another one."""
        self._announcer = announcer
        self._changed = changed
        self._is_auto = False
        self._query: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self.name: str | None = None
        """None if there is none, or while it is not known."""
        self.error: str | None = None
        """Why the agent did not return it."""

    def follow(self, options: Options) -> None:
        """Take the zone of these options from now on, or query the agent that they name."""
        self._cancel()
        self._is_auto = options.zone == AUTO
        self.error = None
        self._tell(None)
        self._tried.clear()
        if self._is_auto:
            self._query = asyncio.create_task(self._ask(options))
        else:
            self._learn(options.zone)
            self._tried.set()

    async def first(self) -> None:
        """Wait until there was a first result, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._tried.wait()

    @property
    def is_tried(self) -> bool:
        """Whether the zone is known, or the query had a result, be it a failure."""
        return self._tried.is_set()

    @property
    def kept(self) -> str | None:
        """The zone to keep on disk: that of the agent."""
        return self.name if self._is_auto else None

    def remember(self, name: str | None) -> None:
        """Take the zone that the disk has kept, until the agent returns one."""
        if self._is_auto and self.name is None and name is not None:
            self._learn(name)

    def document(self) -> dict[str, Any] | None:
        """Return the entry of `status`; None if nothing follows zones."""
        if self.name is None and not self._is_auto:
            return None
        return {"name": self.name, "auto": self._is_auto, "error": self.error}

    async def end(self) -> None:
        """Cancel the query."""
        query = self._cancel()
        if query:
            await asyncio.wait([query])

    def _cancel(self) -> asyncio.Task[None] | None:
        query, self._query = self._query, None
        if query:
            query.cancel()
        return query

    async def _ask(self, options: Options) -> None:
        """Query the agent until it returns a zone."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_random_exponential(multiplier=BACKOFF_FIRST, max=BACKOFF_CAP),
            before_sleep=self._failed,
        )
        zone: str = await retrying(partial(own_zone, options))
        self.error = None
        self._tell(None)
        self._learn(zone)
        self._tried.set()

    def _failed(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ClbError | OSError):
            self.error = str(error)
        elif error is not None:  # a bug must not end the query in silence
            self.error = internal_error(error)
        self._tell(self.error)
        self._tried.set()
        self._changed()

    def _tell(self, error: str | None) -> None:
        self._announcer.trouble("zone of this host cannot be read", error)

    def _learn(self, name: str | None) -> None:
        if name == self.name:
            return
        self.name = name
        if name is not None:
            _log.info("zone of this host", zone=name, source="agent" if self._is_auto else "configuration")
        self._changed()
