"""Looking up host names, Consul's own and those that stand for an instance's address, so that nobody has to wait.

The system's resolver (getaddrinfo(3)) follows nsswitch.conf, as operators expect, but it blocks and cannot be
cancelled. asyncio's own threads are joined at the end, so that a dead DNS server would hold up SIGTERM for seconds;
ours are daemon threads, which end with the process.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from contextlib import suppress
from threading import Thread
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from clb_discovery.core.address import Address, parse_address
from clb_discovery.errors import SourceError

_AT_ONCE: Final = 16
_TIMEOUT: Final = 5.0

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
            for found, _, protocol, _, address in await _look_up(host, port, family, socket.AI_ADDRCONFIG)
        ]

    async def close(self) -> None:
        """Nothing is kept open."""


async def look_up(names: Iterable[str]) -> dict[str, list[Address]]:
    """Return all addresses, of both families, of each name that stands where an instance's address belongs.

    :raises SourceError: if one has none, or nobody can say in time.
    """
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> list[Address]:
        try:
            async with gate, asyncio.timeout(_TIMEOUT):
                infos = await _look_up(name, 0, socket.AF_UNSPEC, 0)
        except TimeoutError:
            raise _unknown(name, f"no answer within {_TIMEOUT:g} s") from None
        except OSError as error:
            raise _unknown(name, str(error.strerror)) from None
        # An address with a zone means nothing beyond its link.
        addresses = list(dict.fromkeys(parse_address(info[4][0]) for info in infos if "%" not in info[4][0]))
        if not addresses:
            raise _unknown(name, "it has link-local addresses only")
        return addresses

    asked = sorted(names)
    return dict(zip(asked, await asyncio.gather(*map(one, asked)), strict=True))


def _unknown(name: str, cause: str) -> SourceError:
    return SourceError(
        f"cannot look up {name!r}, which is registered as an address: {cause}; register an IP address, or mend DNS"
    )


async def _look_up(host: str, port: int, family: socket.AddressFamily, flags: int) -> _Infos:
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
            infos = list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags))
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(settle, infos, failure)

    Thread(target=ask, name=f"look up {host}", daemon=True).start()
    return await answer
