"""The connections of `--metrics`: a limited number at a time, each for a limited time.

Any user of the host can connect, so file descriptors have to be protected. A connection that waits for its client has
`PATIENCE` seconds to receive a whole request, and as many for the client to read the response. The limit does not run
while the response is made. If there are `MOST` connections, a new one replaces the one that has waited longest for its
client. Scrapers and probes send their request at once, so they get a response even if other clients hold as many
connections as they can.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

MOST: Final = 64
"""At most so many connections at a time."""
PATIENCE: Final = 10.0
"""Seconds. The default scrape_timeout of Prometheus is 10 s, too."""
_AT_A_TIME: Final = 8
"""At most so many connections are accepted before the existing ones are served again. A request that came with its
connection is read some turns of the event loop later, and by then fewer than `MOST` connections have come after it."""
_RECOVERY: Final = 1.0  # seconds until the next try after accept(2) has failed


class Connections:
    """The connections of one listener."""

    def __init__(self, make: Callable[[], asyncio.Protocol], trouble: Callable[[str | None], None]) -> None:
        self._make = make  # the protocol that serves a client
        self._trouble = trouble  # called with the reason why connections cannot be accepted, or with None if they can
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # those that wait for their clients, the longest first
        self._beginning: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled. Cancelling does not close the existing ones."""
        loop = asyncio.get_running_loop()
        listener.settimeout(0)
        readable = asyncio.Event()
        try:
            while True:
                while len(self._open) >= MOST and not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                loop.add_reader(listener, readable.set)
                await readable.wait()
                loop.remove_reader(listener)  # else it is called in every turn of the loop
                readable.clear()
                try:
                    self._accept(listener)
                except OSError as error:  # no file descriptor or no memory is left
                    self._trouble(error.strerror or type(error).__name__)
                    await asyncio.sleep(_RECOVERY)
                else:
                    self._trouble(None)
        finally:
            loop.remove_reader(listener)

    def end(self) -> None:
        """Close all connections."""
        for connection in tuple(self._open):
            connection.abort()

    def _accept(self, listener: socket.socket) -> None:
        """Accept the next few connections; raises OSError if accept(2) fails."""
        for _ in range(_AT_A_TIME):
            if len(self._open) >= MOST:
                if not self._waiting:
                    return
                next(iter(self._waiting)).abort()
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            # Without a limit the kernel would keep data that the client never reads, even after we have closed.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(PATIENCE * 1000))
            connection = Connection(self, self._make())
            self._open.add(connection)
            task = asyncio.create_task(self._begin(connection, accepted))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except Exception as error:
            accepted.close()
            self.is_over(connection)
            if not isinstance(error, OSError):  # a bug, which asyncio logs
                raise

    def is_waiting(self, connection: Connection) -> None:
        """Record that a connection waits for its client from now on."""
        self._waiting[connection] = None
        self._changed.set()

    def is_busy(self, connection: Connection) -> None:
        """Record that a connection waits for us."""
        self._waiting.pop(connection, None)

    def is_over(self, connection: Connection) -> None:
        """Record that a connection has ended or is ending."""
        self._waiting.pop(connection, None)
        self._open.discard(connection)
        self._changed.set()


class Connection(asyncio.Protocol):
    """One connection: it passes everything on to the protocol that serves the client, and limits the time."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Start the client's time to read the response and to send the next request."""
        self.busy()
        if self._transport:
            self._deadline = asyncio.get_running_loop().call_later(PATIENCE, self.abort)
            self._connections.is_waiting(self)

    def go_on(self) -> None:
        """Move behind all other waiting connections, as the client reads; its time does not start again."""
        if self._deadline:
            self._connections.is_busy(self)
            self._connections.is_waiting(self)

    def busy(self) -> None:
        """Stop the client's time while its response is made."""
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        self._connections.is_busy(self)

    def abort(self) -> None:
        """Close the connection, even if the client has not read everything."""
        if self._transport:
            self._transport.abort()
            self._connections.is_over(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the client's time and the inner protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self.wait()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and end the inner protocol."""
        self.busy()
        self._transport = None
        self._connections.is_over(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on received data. The client's time does not start again."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that the client sends no more."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the client does not read."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        self._inner.resume_writing()
