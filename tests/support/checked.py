"""Servers that are checked, and what a check of them is to find."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from clb_discovery.checks.exchange import Exchange
from clb_discovery.checks.health import Result
from clb_discovery.config.checks import parse_check
from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Check, Request, Target
from tests.support.fake_dns import cancelled

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TIMEOUT = 0.4
HEAD = b"HTTP/1.1 %d Some reason\r\nServer: x\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def serving(
    handler: Handler, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve connections by a handler; return the port."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await handler(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
        await cancelled(tasks)


def answering(answer: bytes, seen: list[bytes] | None = None) -> Handler:
    """Return a handler that reads a request and answers."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(request)
        writer.write(answer)
        await writer.drain()

    return handler


async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Accept, and never answer."""
    await asyncio.Event().wait()


async def look(
    port: int, check: str, *, address: str = "127.0.0.1", verify: bool = True, limit: float = TIMEOUT
) -> Result:
    """Make one check."""
    request = parse_check(check) or Request()
    found = Check(request, 2.0, limit, verify=verify)
    return await Exchange("1.2").check(Target(parse_address(address), request.port or port, found))


def failed(reason: str) -> Result:
    """Return a failure."""
    return Result(passed=False, reason=reason)


PASSED = Result(passed=True)
HELLO_REQUESTS = b"\x16\x03\x03\x10\x00" + bytes(4096)  # a client skips this message (RFC 5246 section 7.4.1.1)
