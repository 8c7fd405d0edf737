"""`--metrics`: a small HTTP server for Prometheus, for probes and for people. It only reads.

All costly work is done in a thread, one piece at a time. Requests that arrive during it share the next piece, so the
event loop and discovery stay free even under many requests. `connections` limits the number of connections and their
time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from clb_discovery.errors import ClbError
from clb_discovery.metrics.connections import Connection, Connections
from clb_discovery.metrics.exposition import exposition
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.page import read_page
from clb_discovery.metrics.report import Report
from clb_discovery.stderr import described

Trouble = Callable[[str, str | None], None]
"""Is called with a problem and its reason, or with None as the reason while there is no problem."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "clb-discovery",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response. There are none that let other origins read it."""
_SHOWN_LENGTH: Final = 200  # at most so many characters of an error about a request are logged
_BY_CLIENTS: Final = (HttpProcessingError, web.RequestPayloadError, web.PayloadAccessError, ConnectionError)
"""Errors that aiohttp logs because of a client: an invalid request, or one that was broken off."""
_LINGER: Final = 0.25
"""Seconds for unfinished responses at shutdown. aiohttp waits for them twice, before and after it cancels them."""
_PART: Final = 1 << 16  # bytes of a response that are written to a connection at a time
_SHOWN: Final = 8  # `/healthz` names at most so many services
_HOST: Final = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d+)?")


class Site(NamedTuple):
    """The functions that the pages are made from."""

    report: Callable[[], Awaitable[Report]]
    is_ready: Callable[[], bool]
    meters: Meters
    unpublished: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    """Services that there is no room for, as in `status --json`."""


def listen(host: str, port: int) -> socket.socket:
    """Bind the port, before the sidecar changes anything; raises ClbError if that fails."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ClbError(
            f"cannot listen on {where} for --metrics: {reason}; give another ADDR:PORT, or free this one"
        ) from error


@asynccontextmanager
async def serving(listener: socket.socket, site: Site, trouble: Trouble) -> AsyncIterator[None]:
    """Serve `/`, `/status.json`, `/metrics` and `/healthz` while the block runs; report troubles that are our fault.

    A bug outside of a request ends the block with an ExceptionGroup.
    """
    runner = web.AppRunner(
        _application(site),
        access_log=None,
        shutdown_timeout=_LINGER,
        handler_cancellation=True,  # a client that disconnects leaves no work behind
        logger=_Log(trouble),
    )
    await runner.setup()
    cannot_accept = partial(trouble, "cannot accept connections of --metrics")
    connections = Connections(cast("web.Server", runner.server), cannot_accept)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (site.meters.watch_lag(), connections.accept(listener))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        await runner.cleanup()
        connections.end()


class _Log:
    """The logger of aiohttp. Errors of clients become one line at level debug; all others are faults of ours."""

    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble

    def debug(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a line at level debug."""
        reason = " ".join(str(exc_info).split())[:_SHOWN_LENGTH] if exc_info else None
        structlog.stdlib.get_logger().debug(message % args, reason=reason)

    def exception(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a failed request."""
        if exc_info is None or isinstance(exc_info, _BY_CLIENTS):
            self.debug(message, *args, exc_info=exc_info)
        else:
            self._trouble("a request of --metrics fails", described(exc_info))


def _application(site: Site) -> web.Application:
    one_at_a_time = asyncio.Lock()
    page = read_page()

    async def write_metrics() -> bytes:
        return await asyncio.to_thread(exposition, await site.report(), site.meters)

    async def write_status() -> bytes:
        return await asyncio.to_thread((await site.report()).status)

    metrics = _Shared(write_metrics, one_at_a_time, CONTENT_TYPE_LATEST)
    status = _Shared(write_status, one_at_a_time, "application/json")

    async def healthz(_request: web.Request) -> web.Response:
        ready = site.is_ready()
        lines = ["ready" if ready else "not ready"]
        lines += [f"not published: {one['service']!r}: {one['reason']}" for one in site.unpublished()[:_SHOWN]]
        return web.Response(text="".join(f"{line}\n" for line in lines), status=200 if ready else 503)

    async def stats_page(_request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": page.policy}
        return web.Response(body=page.body, content_type="text/html", charset="utf-8", headers=headers)

    application = web.Application(middlewares=[_in_time, _only_by_its_own_name])
    pages = {"/": stats_page, "/status.json": status.answer, "/metrics": metrics.answer, "/healthz": healthz}
    application.add_routes([web.get(path, handler) for path, handler in pages.items()])
    application.on_response_prepare.append(_add_headers)
    return application


class _Shared:
    """Costly work shared by many requests, one piece at a time. Each gets a result of work that began after it."""

    def __init__(self, work: Callable[[], Awaitable[bytes]], one_at_a_time: asyncio.Lock, content_type: str) -> None:
        self._work = work
        self._lock = one_at_a_time
        self._content_type = content_type
        self._next: asyncio.Task[bytes] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Respond with the result of the next piece of work."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        try:
            body = await asyncio.shield(self._next)  # a cancelled request does not cancel the work for the others
        except (OSError, ClbError) as error:  # such as maps that were unloaded meanwhile
            return web.Response(text=f"{error}\n", status=503)
        return await _sent(request, body, self._content_type)

    async def _run(self) -> bytes:
        async with self._lock:
            self._next = None  # requests from here on are too late for this piece
            return await self._work()


async def _sent(request: web.Request, body: bytes, content_type: str) -> web.StreamResponse:
    headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
    if request.method == "HEAD":
        return web.Response(headers=headers)
    response = web.StreamResponse(headers=headers)
    connection = _connection(request)
    if connection:
        connection.wait()
    await response.prepare(request)
    for start in range(0, len(body), _PART):  # as the client reads; else each connection would hold a copy
        await response.write(body[start : start + _PART])
        if connection:
            connection.go_on()
    await response.write_eof()
    return response


def _connection(request: web.Request) -> Connection | None:
    connection = request.transport.get_protocol() if request.transport else None
    return connection if isinstance(connection, Connection) else None


@web.middleware
async def _in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Stop the client's time while its response is made."""
    connection = _connection(request)
    if connection is None:
        return await handler(request)
    connection.busy()
    try:
        return await handler(request)
    finally:
        connection.wait()


@web.middleware
async def _only_by_its_own_name(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that arrive at a loopback address under a foreign host name.

    A page of any site can make a browser send requests here, by a name that the attacker resolves to 127.0.0.1 ("DNS
    rebinding"), and could then read the responses. The Host header has the attacker's name in that case, and never an
    address or localhost.
    """
    host = request.headers.get("Host")
    transport = request.transport
    arrived = transport.get_extra_info("sockname")[0] if transport else None
    if host is not None and arrived and ipaddress.ip_address(arrived).is_loopback and not _is_own(host):
        raise web.HTTPMisdirectedRequest(text="request this by IP address, or as localhost\n")
    return await handler(request)


def _is_own(host: str) -> bool:
    """Return whether a Host header has an address or localhost."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    try:
        ipaddress.ip_address(found["ipv6"] or found["name"])
    except ValueError:
        return found["ipv6"] is None and found["name"].lower() == "localhost"
    return True


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
