"""Real servers in a network namespace behind a link, and the ways in which some of them fail."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import namespaces
from tests.support.distance import Distance, distance
from tests.support.pace import hurry
from tests.support.tun import ip

SERVERS: Final = 10
"""Of the first tier."""
FURTHER: Final = 5
"""Of the next tier, if there is one."""
PORT: Final = 7000
_RESPONSE: Final = b"HTTP/1.0 200 OK\r\n\r\n"


class Fleet:
    """The servers. Each accepts, and responds to each request of a connection."""

    def __init__(self, link: Distance, stack: ExitStack) -> None:
        self.hosts = link.hosts
        self._link = link
        self._stack = stack
        self._hanging: set[str] = set()
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._sockets: dict[str, socket.socket] = {}
        for host in self.hosts:
            sock = namespaces.inside(link.namespace, partial(socket.create_server, (host, PORT), backlog=4096))
            self._sockets[host] = stack.enter_context(sock)
            self._selector.register(sock, selectors.EVENT_READ, host)

    def refuse(self, host: str) -> None:
        """Answer with a reset: the process has ended."""
        self._selector.unregister(self._sockets[host])
        self._sockets[host].shutdown(socket.SHUT_RDWR)

    def fall_silent(self, host: str) -> None:
        """Answer nothing: the host is down."""
        self._link.lost[host] = 1.0

    def lose_packets(self, host: str) -> None:
        """Receive half of the packets."""
        self._link.lost[host] = 0.5

    def come_back(self, host: str) -> None:
        """Receive all packets again."""
        self._link.lost.pop(host, None)

    def hang(self, host: str) -> None:
        """Accept, and respond to nothing."""
        self._hanging.add(host)

    def stop_accepting(self, host: str) -> None:
        """Let the queue of accepted connections fill up: then the kernel drops each SYN."""
        self._selector.unregister(self._sockets[host])
        self._sockets[host].listen(1)

    def be_unreachable(self, host: str) -> None:
        """Have a router answer that there is no such host."""
        namespaces.inside(self._link.namespace, partial(_unroute, host))

    def serve(self, end: socket.socket) -> None:
        """Serve until the other end of this socket is closed."""
        hurry()
        self._selector.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(0.1):
                sock = key.fileobj
                if sock is end:
                    return
                assert isinstance(sock, socket.socket)
                with suppress(OSError):
                    if key.data:
                        self._accept(sock, key.data)
                    else:
                        self._respond(sock)

    def _accept(self, listener: socket.socket, host: str) -> None:
        connection = self._stack.enter_context(listener.accept()[0])
        if host not in self._hanging:
            self._selector.register(connection, selectors.EVENT_READ)

    def _respond(self, connection: socket.socket) -> None:
        if connection.recv(4096):
            connection.sendall(_RESPONSE)
        else:
            self._selector.unregister(connection)
            connection.close()


def _unroute(host: str) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
    ip("address", "delete", f"{host}/32", "dev", "lo")
    ip("route", "add", "unreachable", f"{host}/32")


@contextmanager
def fleet(near: Path, count: int) -> Iterator[Fleet]:
    """Run so many servers, with routes from this network namespace to them, while the block runs."""
    with ExitStack() as stack:
        link = stack.enter_context(distance(0.0, count, near))
        found = Fleet(link, stack)
        here, there = socket.socketpair()
        stack.callback(here.close)
        thread = threading.Thread(target=found.serve, args=(here,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(there.close)
        yield found


class Scene(NamedTuple):
    """A way to fail."""

    fail: Callable[[Fleet, str], None]
    fails: int = 1
    """How many of the first tier fail."""
    further: int = 0
    """How many servers the next tier has."""
    back_after: float = 0
    """Seconds after which they work again; 0: never."""
    removed_after: float = 0
    """Seconds after which discovery removes them; 0: never."""


SCENES: Final = {
    "reset": Scene(Fleet.refuse),
    "reset, three servers": Scene(Fleet.refuse, 3),
    "reset, whole tier": Scene(Fleet.refuse, SERVERS, FURTHER),
    "silent": Scene(Fleet.fall_silent),
    "silent, three servers": Scene(Fleet.fall_silent, 3),
    "silent, whole tier": Scene(Fleet.fall_silent, SERVERS, FURTHER),
    "silent, back after 30 s": Scene(Fleet.fall_silent, back_after=30),
    "silent, removed after 10 s": Scene(Fleet.fall_silent, removed_after=10),
    "accepts and hangs": Scene(Fleet.hang),
    "slow accept queue": Scene(Fleet.stop_accepting),
    "host unreachable": Scene(Fleet.be_unreachable),
    "half of packets lost": Scene(Fleet.lose_packets),
}
