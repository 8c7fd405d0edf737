"""Servers inside the test that send each client their name."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

_FAST_OPEN_QUEUE: Final = 16


class Teller:
    """A server on one address. It sends every message back, after its own name and a space."""

    def __init__(self, sock: socket.socket) -> None:
        self.target: tuple[str, int] = sock.getsockname()[:2]
        host, port = self.target
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.heard = 0
        """Datagrams, or pieces of a stream, that have arrived."""

    def answer(self, message: bytes) -> bytes:
        """Return the answer to a message."""
        return self.name.encode() + b" " + message


@contextmanager
def tellers(*hosts: str, udp: bool = False, protocol: int = 0) -> Iterator[list[Teller]]:
    """Serve on each host, on a port of its own, while the block runs.

    :param protocol: such as IPPROTO_MPTCP; 0 for the usual one.
    """
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        here, there = socket.socketpair()
        stack.enter_context(here)
        stack.enter_context(there)
        selector.register(there, selectors.EVENT_READ)
        found = []
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
            sock = stack.enter_context(socket.socket(family, kind, protocol))
            if not udp:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, 0))
            sock.setblocking(False)
            teller = Teller(sock)
            if udp:
                selector.register(sock, selectors.EVENT_READ, partial(_reply, sock, teller))
            else:
                if protocol == 0:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, _FAST_OPEN_QUEUE)
                sock.listen(4096)
                selector.register(sock, selectors.EVENT_READ, partial(_accept, selector, stack, sock, teller))
            found.append(teller)
        thread = threading.Thread(target=_serve, args=(selector,))
        thread.start()
        try:
            yield found
        finally:
            here.close()
            thread.join()


def _serve(selector: selectors.BaseSelector) -> None:
    while True:
        for key, _ in selector.select():
            call: Callable[[], None] | None = key.data
            if call is None:
                return
            with contextlib.suppress(BlockingIOError):
                call()


def _accept(selector: selectors.BaseSelector, stack: ExitStack, listener: socket.socket, teller: Teller) -> None:
    client = stack.enter_context(listener.accept()[0])
    client.setblocking(False)
    selector.register(client, selectors.EVENT_READ, partial(_converse, selector, client, teller))


def _converse(selector: selectors.BaseSelector, client: socket.socket, teller: Teller) -> None:
    try:
        message = client.recv(65536)
    except ConnectionError:
        message = b""
    if message:
        teller.heard += 1
        client.sendall(teller.answer(message))
    else:
        selector.unregister(client)
        client.close()


def _reply(sock: socket.socket, teller: Teller) -> None:
    message, sender = sock.recvfrom(65536)
    teller.heard += 1
    sock.sendto(teller.answer(message), sender)
