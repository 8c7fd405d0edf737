"""The sources of one configuration, and the tasks that follow them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Final

from clb_discovery.core.model import Answer, Failure
from clb_discovery.sources.base import Source, follow

_CANCEL_EVERY: Final = 0.1


class Watches:
    """Sources that are there from `open` to `end`, and followed from `start` on."""

    def __init__(self, open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]) -> None:
        """Take what makes the source of each service, by its name."""
        self._open_sources = open_sources
        self._opened = AsyncExitStack()
        self._sources: Mapping[str, Source] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make the sources; nothing is asked yet.

        :raises ClbError: if one cannot be made.
        """
        self._sources = await self._opened.enter_async_context(self._open_sources())

    def start(self, heard: Callable[[str, Answer | Failure], None]) -> None:
        """Follow all of them.

        :param heard: gets the name of a source and what it came back with.
        """
        self._tasks = {
            asyncio.create_task(follow(source, partial(heard, source.name))) for source in self._sources.values()
        }

    async def end(self) -> None:
        """End all tasks, and close what the sources share; again does nothing."""
        while self._tasks:  # asyncio.wait_for before Python 3.12 swallows a cancellation that meets a result
            for task in self._tasks:
                task.cancel()
            _, self._tasks = await asyncio.wait(self._tasks, timeout=_CANCEL_EVERY)
        await self._opened.aclose()
