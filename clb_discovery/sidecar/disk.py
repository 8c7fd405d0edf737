"""Writes to disk that delay nothing else, because a disk can stall for minutes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from clb_discovery.errors import HostError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Disk:
    """One job at a time that writes files, and the thread of its calls."""

    def __init__(self) -> None:
        """Start the thread now; later there may be no room for one.

        :raises HostError: if it cannot start.
        """
        self._job: asyncio.Task[None] | None = None
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        try:
            # The end of the program does not wait for a daemon, but it does for the threads of any executor.
            threading.Thread(target=self._work, daemon=True).start()
        except RuntimeError as error:
            raise HostError(f"cannot start a thread: {error}; raise TasksMax=, or ulimit -u") from None

    @property
    def is_busy(self) -> bool:
        """Whether the last job still runs."""
        return self._job is not None and not self._job.done()

    async def start(self, job: Coroutine[Any, Any, None], patience: float | None) -> None:
        """Start a job when the last one has ended, and wait for it for some seconds at most; without them for its end.

        :raises Exception: the error of the last job, or of this one if it ends in this time.
        """
        last, self._job = self._job, asyncio.create_task(job)
        if last:
            last.result()
        await self.rest(patience)

    async def rest(self, patience: float | None) -> None:
        """Wait for the end of the job as `start` does."""
        if self._job:
            await asyncio.wait({self._job}, timeout=patience)
            if self._job.done():
                self._job.result()

    async def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call a function of the job in the thread."""
        outcome: Future[_R] = Future()
        self._calls.put(partial(_settle, outcome, partial(function, *args, **kwargs)))
        return await asyncio.wrap_future(outcome)

    def _work(self) -> None:
        while True:
            self._calls.get()()


def _settle(outcome: Future[_R], function: Callable[[], _R]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        outcome.set_result(function())
    except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
        outcome.set_exception(error)
