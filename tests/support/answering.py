"""Real servers in a thread of the test that send each client the reached address; each can die and come back."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from clb_discovery.model.address import parse_address

_PROMPT: Final = 0.05
"""Seconds until the thread sees that it has to end."""


class Answering:
    """Servers on addresses of the loopback, each with a port of its own that stays the same over its death."""

    def __init__(self) -> None:
        self.ports: Final[dict[str, int]] = {}
        """By host, from its first start on."""
        self._listeners: Final[dict[str, socket.socket]] = {}
        self._selector: Final = selectors.DefaultSelector()
        self._lock: Final = threading.Lock()

    def start(self, host: str) -> None:
        """Listen, maybe again."""
        sock = socket.create_server((host, self.ports.get(host, 0)), backlog=4096)
        sock.setblocking(False)
        with self._lock:
            self.ports[host] = sock.getsockname()[1]
            self._listeners[host] = sock
            self._selector.register(sock, selectors.EVENT_READ)

    def die(self, host: str) -> None:
        """Stop listening: from the return on each connect is refused."""
        with self._lock:
            sock = self._listeners.pop(host)
            self._selector.unregister(sock)
            sock.close()

    def serve(self, ended: threading.Event) -> None:
        """Answer until then, and close everything."""
        while not ended.is_set():
            for key, _ in self._selector.select(_PROMPT):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                with self._lock, suppress(OSError):  # it has died, or its client has
                    client, _ = sock.accept()
                    with client:
                        client.sendall(parse_address(client.getsockname()[0]))
        for host in [*self._listeners]:
            self.die(host)
        self._selector.close()


@contextmanager
def answering(*hosts: str) -> Iterator[Answering]:
    """Serve on these hosts while the block runs."""
    servers, ended = Answering(), threading.Event()
    for host in hosts:
        servers.start(host)
    thread = threading.Thread(target=servers.serve, args=(ended,))
    thread.start()
    try:
        yield servers
    finally:
        ended.set()
        thread.join()
