"""Servers inside the test that only count their clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class Listener:
    """A server on one address, over TCP or UDP."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self.port: int = sock.getsockname()[1]
        host = sock.getsockname()[0]
        self.name = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def taken(self) -> int:
        """Return how many connections, or datagrams, have come since the last call."""
        count = 0
        try:
            while True:
                if self._sock.type is socket.SOCK_STREAM:
                    self._sock.accept()[0].close()
                else:
                    self._sock.recv(1)
                count += 1
        except BlockingIOError:
            return count


@contextmanager
def listening(*hosts: str, udp: bool = False, port: int = 0) -> Iterator[list[Listener]]:
    """Listen on each host, on a port of its own unless one is given."""
    with ExitStack() as stack:
        listeners = []
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            if udp:
                sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
                sock.bind((host, port))
            else:
                sock = stack.enter_context(socket.create_server((host, port), family=family, backlog=4096))
            listeners.append(Listener(sock))
        yield listeners
