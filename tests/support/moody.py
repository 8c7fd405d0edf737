"""Servers that accept, refuse or stay silent at the test's command, without ever releasing their port."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.support.process import wait_until


class MoodyServer:
    """A TCP server on one address that accepts at first."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Listen.

        :param port: 0 for a free one.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._held = ExitStack()
        self._sock = self._held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        with socket.socket(family, socket.SOCK_STREAM) as scout:
            scout.bind((host, port))
            self.target: tuple[str, int] = scout.getsockname()[:2]
        # Connections of this server must not block its port.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The kernel releases an automatic port when listening ends, and keeps an explicit one.
        self._sock.bind(self.target)
        self.name = f"[{host}]:{self.target[1]}" if ":" in host else f"{host}:{self.target[1]}"
        self.accept()

    def fileno(self) -> int:
        """Return the descriptor of the listening socket."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the server and every connection that it has accepted."""
        self._held.close()

    def accept(self) -> None:
        """Let the kernel accept from now on."""
        self._sock.listen(4096)

    def refuse(self) -> None:
        """Answer with a reset from now on, as nothing listens; connections that were not accepted are reset, too."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def fall_silent(self) -> None:
        """Answer nothing from now on: the kernel drops each SYN while the backlog is full."""
        self._sock.listen(0)
        self._sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._held.enter_context(self._sock.accept()[0])
        filling = self._held.enter_context(socket.socket(self._sock.family))  # unless a client is faster
        filling.setblocking(False)
        filling.connect_ex(self.target)
        wait_until(lambda: self._waiting() > 0, "a connection waits to be accepted")

    def _waiting(self) -> int:
        """Return the number of connections that were not accepted (tcpi_unacked of a listener)."""
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int.from_bytes(info[24:28], sys.byteorder)

    def take(self) -> socket.socket:
        """Return the connection that has waited longest; it is closed with the server."""
        self._sock.settimeout(5)
        return self._held.enter_context(self._sock.accept()[0])


@contextmanager
def moody_servers(*hosts: str) -> Iterator[list[MoodyServer]]:
    """Run a server on each host, on a port of its own."""
    with ExitStack() as stack:
        servers = []
        for host in hosts:
            server = MoodyServer(host)
            stack.callback(server.close)
            servers.append(server)
        yield servers
