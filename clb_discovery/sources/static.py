"""Real servers from the configuration: a source whose answer never changes."""

from __future__ import annotations

import asyncio

from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import RealServer


class StaticSource:
    """The servers of one service: a `sources.base.Source`."""

    def __init__(self, name: str, servers: tuple[RealServer, ...]) -> None:
        """Take the name for status, logs and metrics, such as `static:ldap`, and the servers."""
        self.name = name
        self._servers = servers
        self._due = asyncio.Event()
        self._due.set()

    async def next(self) -> Answer:
        """Return the servers at the first call and after `hasten`; otherwise wait."""
        await self._due.wait()
        self._due.clear()
        return Answer(self._servers)

    def hasten(self) -> None:
        """Return the servers once more."""
        self._due.set()
