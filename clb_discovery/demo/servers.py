"""Real servers. Each listens on addresses of both families, and responds with its name."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Final, cast

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 1024


class Listener:
    """A server that responds to `PING` with `+PONG` and its name, like Redis."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._servers: list[asyncio.Server] = []

    async def start(self, hosts: Iterable[str], port: int) -> None:
        """Listen on these addresses."""
        loop = asyncio.get_running_loop()
        for host in hosts:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit it. Clients close first, so the reset loses no data, and thousands of connections do
            # not stay in TIME_WAIT and use up the client's ports.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.bind((host, port))
            self._servers.append(await loop.create_server(lambda: _Pong(self.name), sock=sock, backlog=_BACKLOG))

    def close(self) -> None:
        """Stop listening. From now on connects to these addresses are refused."""
        for server in self._servers:
            server.close()


class _Pong(asyncio.Protocol):
    def __init__(self, name: str) -> None:
        self._answer = f"+PONG {name}\r\n".encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\n"):
            self._transport.write(self._answer)
