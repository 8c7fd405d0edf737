"""Looking up the host names of servers that we connect to, so that nobody has to wait for the answer.

The system's resolver (getaddrinfo(3)) follows nsswitch.conf, as operators expect, but it blocks and cannot be
cancelled. asyncio's own threads are joined at the end, so that a dead DNS server would hold up SIGTERM for seconds;
ours are daemon threads, which end with the process.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from threading import Thread
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

_Infos = list[tuple[Any, ...]]


class HostNames(AbstractResolver):
    """What aiohttp asks for addresses."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        :raises OSError: if there are none, or nobody can say.
        """
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in await _look_up(host, port, family)
        ]

    async def close(self) -> None:
        """Nothing is kept open."""


async def _look_up(host: str, port: int, family: socket.AddressFamily) -> _Infos:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Infos] = loop.create_future()

    def settle(infos: _Infos, error: OSError | None) -> None:
        if answer.done():  # cancelled meanwhile
            return
        if error:
            answer.set_exception(error)
        else:
            answer.set_result(infos)

    def ask() -> None:
        infos: _Infos = []
        failure: OSError | None = None
        try:
            infos = list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(settle, infos, failure)

    Thread(target=ask, name=f"look up {host}", daemon=True).start()
    return await answer
