"""The sources of one configuration, and the tasks that follow them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Final

import structlog

from clb_discovery.model.answer import Failure, Outcome
from clb_discovery.model.service import CATALOG, CONSUL
from clb_discovery.sources.base import CatalogSource, Source
from clb_discovery.sources.follow import Bugs, follow

_CANCEL_EVERY: Final = 0.1

Receive = Callable[[str, Outcome], None]
_log = structlog.stdlib.get_logger()


class Watches:
    """The sources: they exist from `open` to `end`, and are followed from `start` on."""

    def __init__(self, open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]) -> None:
        """Take the function that opens the sources and returns them by name."""
        self._open_sources = open_sources
        self._opened = AsyncExitStack()
        self._sources: Mapping[str, Source] = {}
        self._receive: Receive | None = None
        self._followed: dict[str, Source] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._bugs = Bugs()  # that have ended tasks

    async def open(self) -> None:
        """Open the sources; no query is sent yet.

        :raises ClbError: if one cannot be opened.
        """
        self._sources = await self._opened.enter_async_context(self._open_sources())

    def start(self, receive: Receive) -> None:
        """Follow all of them.

        :param receive: called with the name of a source and its answer or failure.
        """
        self._receive = receive
        self.adjust(())

    def adjust(self, names: Collection[str]) -> None:
        """Follow all sources of the configuration, and exactly these of its catalog.

        Before `start` and after `end` this does nothing.

        :param names: names of sources; those of the configuration may be among them.
        :raises UsageError: if Consul cannot be queried for one of them.
        """
        if self._receive is None or (self._tasks and not self._ending and names == self._tasks.keys()):
            return
        wanted = {**dict.fromkeys(names), **self._sources}
        _log.debug("followed sources change", before=len(self._tasks), now=len(wanted), ending=len(self._ending))
        for name in self._tasks.keys() - wanted.keys():
            ending = self._tasks.pop(name)
            del self._followed[name]
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        # Repeated: before Python 3.12 asyncio.wait_for may swallow a cancellation that coincides with a result.
        for task in self._ending:
            task.cancel()
        for name in wanted.keys() - self._tasks.keys():
            source = wanted[name] or self._from_catalog(name)
            if source:
                self._followed[name] = source
                self._tasks[name] = asyncio.create_task(follow(source, partial(self._receive, name)))
                self._tasks[name].add_done_callback(partial(self._ended, name))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """Report a task that a bug has ended; the next `adjust` follows its source again.

        Otherwise the source would look fresh for ever.
        """
        error = None if task.cancelled() else task.exception()
        if error is None or self._receive is None or self._tasks.get(name) is not task:
            return
        del self._tasks[name], self._followed[name]
        self._receive(name, Failure(self._bugs.reason(name, error)))

    def hasten(self, name: str) -> None:
        """Hasten a source; ignore one that is not followed."""
        if name in self._followed:
            self._followed[name].hasten()

    async def end(self) -> None:
        """End all tasks, and close what the sources share; a second call does nothing."""
        self._receive = None
        tasks = {*self._tasks.values(), *self._ending}
        self._tasks.clear()
        self._followed.clear()
        while tasks:  # repeated, as above
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_CANCEL_EVERY)
        await self._opened.aclose()

    def _from_catalog(self, name: str) -> Source | None:
        catalog = self._sources.get(CATALOG)
        return catalog.service(name.removeprefix(CONSUL)) if isinstance(catalog, CatalogSource) else None
