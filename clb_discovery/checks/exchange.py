"""One check of one real server: a connect, or one HTTP request.

The answer is untrusted. The time of the whole check is limited; at most the status line and the headers are received,
only the status is decoded, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, TypeVar

from clb_discovery.checks.authorities import Contexts
from clb_discovery.checks.connect import connect, endpoint, is_own_fault, open_socket, tcp_connect
from clb_discovery.checks.health import Result
from clb_discovery.checks.response import MOST_BYTES, request_bytes, status_of
from clb_discovery.checks.time_limit import time_limit
from clb_discovery.model.check import Target
from clb_discovery.text import printable

_MOST_TLS_BYTES: Final = 8 * MOST_BYTES
"""Most bytes that are received under TLS: OpenSSL takes a chain of certificates of 100 KiB, but skips messages without
limit."""
_OWN_TLS: Final = frozenset({"MALLOC_FAILURE", "INTERNAL_ERROR"})
_PASSED: Final = Result(passed=True)
_LONGEST_REASON: Final = 200

_Found = TypeVar("_Found")


class Exchange:
    """Makes checks. For one event loop."""

    def __init__(self, version: str) -> None:
        """Prepare; nothing is read yet.

        :param version: of this program, for the User-Agent header.
        """
        self._version = version
        self._contexts = Contexts()

    async def check(self, target: Target) -> Result:
        """Check a real server once."""
        context = None
        try:
            if target.check.request.scheme == "https":
                context = await self._contexts.get(verify=target.check.verify)
        except OSError as error:  # such as certificate authorities that cannot be read
            return Result(None, f"TLS on this host: {error}")
        stage, timeout = ["connect"], target.check.timeout
        try:
            async with time_limit(timeout):
                if target.check.request.scheme == "tcp":
                    await tcp_connect(target.address, target.port)
                    return _PASSED
                status = await self._status(target, context, stage)
        except TimeoutError:
            return Result(passed=False, reason=f"no {stage[0]} within {timeout:g} s")
        except (OSError, ValueError, MemoryError) as error:
            if context and isinstance(error, ssl.SSLCertVerificationError):
                self._contexts.failed(context)
            return _failed(error)
        return _PASSED if 200 <= status < 400 else Result(passed=False, reason=f"HTTP {status}")

    def reload(self) -> None:
        """Read the certificate authorities of this host again with the next check."""
        self._contexts.forget()

    async def _status(self, target: Target, context: ssl.SSLContext | None, stage: list[str]) -> int:
        """Return the status of the answer.

        :param context: for TLS; None without it.
        :param stage: is replaced by what is being waited for.
        """
        request = target.check.request
        family, name = endpoint(target.address, target.port)
        with open_socket(family) as connection:
            await connect(connection, name)
            stage[0] = "answer"
            stream = _Stream(connection) if context is None else _TlsStream(connection, context, request.host)
            await stream.send(request_bytes(request, self._version))
            received = b""
            while (status := status_of(received)) is None:
                more = await stream.receive(MOST_BYTES - len(received))
                if not more:
                    raise ValueError("the server closed the connection before its answer was complete")
                received += more
            return status


class _Stream:
    """The bytes of a connection, without limits of time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._connection, data)

    async def receive(self, most: int) -> bytes:
        """Return at least one byte, or none at the end."""
        received = await self._loop.sock_recv(self._connection, most)
        await asyncio.sleep(0)  # sock_recv returns at once while there is data, and nothing else would run
        return received


class _TlsStream(_Stream):
    """The same under TLS. The handshake comes with the first bytes; the connection is closed without a farewell."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(connection)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._left = _MOST_TLS_BYTES
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def send(self, data: bytes) -> None:
        """Shake hands, and send all of it."""
        await self._do(self._tls.do_handshake)
        await self._do(lambda: self._tls.write(data))

    async def receive(self, most: int) -> bytes:
        """Return at least one byte, or none at the end."""
        return await self._do(lambda: self._tls.read(most))

    async def _do(self, operation: Callable[[], _Found]) -> _Found:
        """Carry out an operation, which may have to receive first."""
        while True:
            try:
                found = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                if not self._left:
                    raise ValueError(f"the server sends more than {_MOST_TLS_BYTES} bytes under TLS") from None
                received = await super().receive(min(MOST_BYTES, self._left))
                self._left -= len(received)
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return found

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await super().send(self._outgoing.read())


def _failed(error: OSError | ValueError | MemoryError) -> Result:
    """Return the result of a check that ended with an error: of the server, or of this host."""
    match error:
        case ssl.SSLCertVerificationError():
            return _failure(f"certificate: {error.verify_message}")
        case ssl.SSLError():
            text = f"TLS: {(error.reason or error.strerror or 'failed').lower().replace('_', ' ')}"
            return Result(None, text) if error.reason in _OWN_TLS else _failure(text)
        case OSError():
            text = error.strerror or str(error)
            return Result(None, text) if is_own_fault(error) else _failure(text)
        case MemoryError():
            return Result(None, os.strerror(errno.ENOMEM))
    return _failure(str(error))


def _failure(reason: str) -> Result:
    return Result(passed=False, reason=printable(reason)[:_LONGEST_REASON])
