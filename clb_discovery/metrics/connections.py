"""The connections of `--metrics`: at most so many at a time, and each with a limit of time.

Any user of the host can connect, so descriptors are what has to be kept. A connection that waits for its client has
`PATIENCE` seconds: for a whole request, however its bytes come, and for taking the answer. One whose answer is being
made is ours to end. Where all places are taken the connection gives way that has waited longest for its client, so that
those who ask at once, as scrapers and probes do, are answered also while others hold as many as they can.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

MOST: Final = 64
"""Connections at a time."""
PATIENCE: Final = 10.0
"""Seconds; Prometheus, too, gives a scrape 10 s unless it is configured otherwise (scrape_timeout)."""
_AT_A_TIME: Final = 8
"""Connections that are accepted before those that are there are looked at: a request that came with its connection is
found some turns of the event loop later, and by then fewer than `MOST` have come after it."""
_RECOVERY: Final = 1.0
"""Seconds until the next try where the kernel had no connection for us."""


class Connections:
    """Those of one listener."""

    def __init__(self, make: Callable[[], asyncio.Protocol], trouble: Callable[[str | None], None]) -> None:
        """Prepare.

        :param make: makes what speaks with a client.
        :param trouble: hears why connections cannot be accepted, and None when they can.
        """
        self._make = make
        self._trouble = trouble
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # for their clients, the longest first
        self._beginning: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled; those that are there then stay."""
        loop = asyncio.get_running_loop()
        listener.settimeout(0)
        readable = asyncio.Event()
        try:
            while True:
                await self._has_room()
                loop.add_reader(listener, readable.set)
                await readable.wait()
                loop.remove_reader(listener)  # which would go on saying so
                readable.clear()
                try:
                    self._accept(listener)
                except OSError as error:  # no descriptor is left, or no memory
                    self._trouble(error.strerror or type(error).__name__)
                    await asyncio.sleep(_RECOVERY)
                else:
                    self._trouble(None)
        finally:
            loop.remove_reader(listener)

    def end(self) -> None:
        """Close all of them."""
        for connection in tuple(self._open):
            connection.abort()

    def _accept(self, listener: socket.socket) -> None:
        """Accept the few that are next; raises OSError where the kernel cannot give us one."""
        for _ in range(_AT_A_TIME):
            if len(self._open) >= MOST:
                if not self._waiting:
                    return
                next(iter(self._waiting)).abort()
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            # What a client never takes would be the kernel's to keep when we have closed.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(PATIENCE * 1000))
            connection = Connection(self, self._make())
            self._open.add(connection)
            task = asyncio.create_task(self._begin(connection, accepted))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            accepted.close()
            self.is_over(connection)

    async def _has_room(self) -> None:
        while len(self._open) >= MOST and not self._waiting:
            self._changed.clear()
            await self._changed.wait()

    def is_waiting(self, connection: Connection) -> None:
        """Take note that a connection waits for its client, from now on."""
        self._waiting[connection] = None
        self._changed.set()

    def is_busy(self, connection: Connection) -> None:
        """Take note that a connection waits for us."""
        self._waiting.pop(connection, None)

    def is_over(self, connection: Connection) -> None:
        """Take note that a connection has ended, or is about to."""
        self._waiting.pop(connection, None)
        self._open.discard(connection)
        self._changed.set()


class Connection(asyncio.Protocol):
    """One connection: what comes is handed on to what speaks with the client, and its time is kept."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        """Prepare; asyncio calls the rest."""
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Give the client its time, from now on: to take what was sent, and for a request."""
        self.busy()
        if self._transport:
            self._deadline = asyncio.get_running_loop().call_later(PATIENCE, self.abort)
            self._connections.is_waiting(self)

    def go_on(self) -> None:
        """Take note that the client takes what is sent, which earns no time, but a place behind those that wait."""
        if self._deadline:
            self._connections.is_busy(self)
            self._connections.is_waiting(self)

    def busy(self) -> None:
        """Stop the client's clock while its answer is made."""
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        self._connections.is_busy(self)

    def abort(self) -> None:
        """Close the connection, whatever the client has still to take."""
        if self._transport:
            self._transport.abort()
            self._connections.is_over(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self.wait()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.busy()
        self._transport = None
        self._connections.is_over(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hand on what came, which earns no time."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand on that no more will come."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Hand on that the client does not take what is sent."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that it does again."""
        self._inner.resume_writing()


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
