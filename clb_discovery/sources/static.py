"""Real servers that the configuration names: a source that knows from the start, and hears nothing new."""

from __future__ import annotations

import asyncio

from clb_discovery.core.model import Answer, RealServer


class StaticSource:
    """The servers of one service: a `sources.base.Source`."""

    def __init__(self, name: str, servers: tuple[RealServer, ...]) -> None:
        """Take the name for status, logs and metrics, such as `static:ldap`, and the servers."""
        self.name = name
        self._servers = servers
        self._answered = False

    async def next(self) -> Answer:
        """Return the servers the first time, and wait for ever after that."""
        if self._answered:
            await asyncio.Event().wait()
        self._answered = True
        return Answer(self._servers)
