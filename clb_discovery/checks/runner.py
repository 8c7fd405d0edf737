"""Run the checks when they are due, a bounded number at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

from clb_discovery.checks.health import Result
from clb_discovery.checks.schedule import Schedule
from clb_discovery.model.check import Target
from clb_discovery.stderr import internal_error

AT_A_TIME: Final = 64
"""Most checks of all services that run at the same time."""
LATE: Final = 1.0
"""Seconds by which a check may begin late without a word."""


class Runner:
    """Checks targets, and passes on each result. For one event loop."""

    def __init__(
        self,
        check: Callable[[Target], Awaitable[Result]],
        heard: Callable[[Target, Result], None],
        late: Callable[[], None],
        most: int = AT_A_TIME,
    ) -> None:
        """Prepare; nothing is checked yet.

        :param check: makes one check.
        :param heard: takes each result.
        :param late: is called for each check that begins later than `LATE`, because too many others ran.
        """
        self._check = check
        self._heard = heard
        self._count_late = late
        self._schedule = Schedule(most, random.random)
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.late = 0.0
        """Seconds by which the last check began late; 0 if none has begun since `follow`."""

    def follow(self, targets: Collection[Target], down: Collection[Target] = ()) -> None:
        """Check these from now on, and no others; those that are down now, if they are new."""
        self.late = 0.0
        self._schedule.follow(targets, asyncio.get_running_loop().time(), down)
        self._changed.set()

    def hurry(self, target: Target, pause: float) -> None:
        """Check this one now, if it is followed and was not hurried less than `pause` seconds ago."""
        if self._schedule.hurry(target, asyncio.get_running_loop().time(), pause):
            self._changed.set()

    async def run(self) -> None:
        """Run until it is cancelled, and end all checks then."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._changed.clear()
                now = loop.time()
                for target in self._schedule.take(now):
                    self.late = now - self._schedule.due(target)
                    if self.late > LATE:
                        self._count_late()
                    task = loop.create_task(self._one(target))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._schedule.pause(loop.time())):
                        await self._changed.wait()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _one(self, target: Target) -> None:
        try:
            result = await self._check(target)
        except Exception as error:  # noqa: BLE001 - a bug must not end a check in silence
            result = Result(None, internal_error(error))
        finally:
            self._schedule.done(target, asyncio.get_running_loop().time())
            self._changed.set()
        self._heard(target, result)
