"""Find the services that may have changed, when there are too many for a blocking query each.

Three blocking queries cover the whole catalog: checks, services and nodes. Each returns when any service of the
datacenter changes. Their answers lack the details, so services that may have changed are queried again:

- The checks that are not passing name the services whose health changed. A node's own check concerns all services.
- Services and nodes only show that something was registered, changed or removed, so they concern all services.

docs/decisions/0013-many-services.md has the reasons and the measurements.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.answer import Check, parse_checks
from clb_discovery.sources.consul.blocking import FIRST, Bucket
from clb_discovery.sources.consul.client import Client, Indexed, Selection
from clb_discovery.sources.consul.transport import CHECKS, NODES, SERVICES

SWEEP_RATE: Final = 500.0
"""Services queried again per second, in the long run, because the catalog has changed somewhere."""
SWEEP_BURST: Final = 20_000.0
"""Services queried again without a pause after a quiet time."""
WATCH_RATE: Final = 1.0
"""Queries per second for each of the three in the long run: most changes concern services that are not followed."""
WATCH_BURST: Final = 10.0
"""Queries for each of the three at once after a quiet time."""
START_RATE: Final = 1 / 30
"""Restarts of the watch per second after failures, in the long run: each one queries every service."""
START_BURST: Final = 5.0
"""Restarts of the watch without a pause after a quiet time."""

Key = tuple[str, Selection]
"""The name of a service, and which of its instances to return."""

_Take = Callable[[object], Awaitable[None]]

_log = structlog.stdlib.get_logger()


class ChangeWatch:
    """Tracks which services have not changed since they were last queried. For one event loop."""

    def __init__(self, client: Client, wait: float) -> None:
        """Prepare; no query is sent yet.

        :param wait: how long Consul holds a query without a change, in seconds.
        """
        self._client = client
        self._wait = wait
        self._unchanged: set[Key] = set()
        self._wakeup: asyncio.Future[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._sweeps = Bucket.full(SWEEP_RATE, SWEEP_BURST, time.monotonic())
        self._starts = Bucket.full(START_RATE, START_BURST, time.monotonic())

    def note_query(self, service: Key, *, leader: bool) -> None:
        """Note that a service is about to be queried.

        :param leader: whether the leader answers, so that only later changes count; else the answer may be old.
        """
        (self._unchanged.add if leader else self._unchanged.discard)(service)

    async def changed(self, service: Key, deadline: float) -> None:
        """Wait until the service may have changed since it was last queried.

        :param deadline: when to return in any case, by `time.monotonic`.
        :raises SourceError: if a query of the watch failed.
        """
        while service in self._unchanged and (left := deadline - time.monotonic()) > 0:
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())
            if self._wakeup is None:
                self._wakeup = asyncio.get_running_loop().create_future()
            wakeup = self._wakeup
            await asyncio.wait([wakeup], timeout=left)
            if wakeup.done():
                wakeup.result()
        if service in self._unchanged:
            _log.debug("no news of a service for long; it is queried again", service=service[0])

    async def close(self) -> None:
        """Stop watching."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        """Watch until a query fails; all waiting callers get the error, and the next caller starts the watch again."""
        self._starts, pause = self._starts.take(time.monotonic())
        _log.debug("watching the whole catalog for changes", starts_in=round(pause, 1))
        await asyncio.sleep(pause)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_checks())
                group.create_task(self._follow(SERVICES, self._client.services, self._sweep))
                group.create_task(self._follow(NODES, self._client.nodes, self._sweep))
        except* Exception as failed:  # noqa: BLE001  # bugs, too, go to the waiting callers
            self._watching = None
            _log.debug(
                "watching the catalog failed; services are queried again", error=type(failed.exceptions[0]).__name__
            )
            self._wake(failed.exceptions[0])

    async def _watch_checks(self) -> None:
        before: frozenset[Check] | None = None

        async def compare(answer: object) -> None:
            nonlocal before
            now = parse_checks(answer)
            names = {check.service for check in now ^ before} if before is not None else {""}
            before = now
            if "" in names:
                await self._sweep(answer)
            elif names:
                folded = set(map(str.lower, names))  # Consul ignores case in names of services
                watched = len(self._unchanged)
                self._unchanged = {key for key in self._unchanged if key[0].lower() not in folded}
                changed = watched - len(self._unchanged)
                _log.debug(
                    "checks have changed; their services are queried again", checked=len(names), services=changed
                )
                self._wake()

        await self._follow(CHECKS, self._client.checks, compare)

    async def _follow(self, path: str, query: Callable[[int, float], Awaitable[Indexed]], take: _Take) -> None:
        """Pass every answer with a changed index to `take`, for ever.

        :raises SourceError: if there is no complete answer.
        """
        index, brake = FIRST, Bucket.full(WATCH_RATE, WATCH_BURST, time.monotonic())
        while True:
            brake, pause = brake.take(time.monotonic())
            if pause:
                _log.debug("rate limit: pausing before the next query", path=path, seconds=round(pause, 1))
            await asyncio.sleep(pause)
            header, answer = await query(index, self._wait)
            before, index = index, self._client.next_index(path, header, index)
            if index == before:
                continue
            try:
                await take(answer)
            except SourceError as error:
                raise SourceError(f"{self._client}: {error}") from None

    async def _sweep(self, _answer: object) -> None:
        """Let every service be queried again; return when the next sweep may start."""
        count = len(self._unchanged)
        self._sweeps, pause = self._sweeps.take(time.monotonic(), count)
        _log.debug("the catalog has changed; all services are queried again", services=count, pause=round(pause, 1))
        self._unchanged.clear()
        self._wake()
        await asyncio.sleep(pause)

    def _wake(self, error: Exception | None = None) -> None:
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is None:
            return
        if error is None:
            wakeup.set_result(None)
        else:
            wakeup.set_exception(error)
            wakeup.exception()  # so that asyncio does not complain if all waiting callers were cancelled
