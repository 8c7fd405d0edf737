"""Servers with the little of HTTP and of PostgreSQL's protocol that a client needs to take a connect for good."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from tests.support.pace import hurry

_HTTP: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_WELCOME: Final = b"".join(
    kind + struct.pack("!I", 4 + len(body)) + body
    for kind, body in ((b"R", bytes(4)), (b"S", b"server_version\x0015\0"), (b"Z", b"I"))
)
"""AuthenticationOk, a parameter and ReadyForQuery."""
_EMPTY: Final = b"I" + struct.pack("!I", 4) + b"Z" + struct.pack("!I", 5) + b"I"
"""The answer to an empty query."""


def _answer(message: bytes) -> bytes:
    if message.startswith(b"GET "):
        return _HTTP
    if message.startswith(b"Q"):
        return _EMPTY
    return b"" if message.startswith(b"X") else _WELCOME


@contextmanager
def greeting(*listeners: socket.socket) -> Iterator[None]:
    """Serve at these sockets, of any network namespace, while the block runs; they are closed at the end."""
    with ExitStack() as stack:
        here, there = socket.socketpair()
        stack.enter_context(there)
        selector = stack.enter_context(selectors.DefaultSelector())
        for sock in listeners:
            stack.enter_context(sock)
            selector.register(sock, selectors.EVENT_READ, "listener")
        selector.register(here, selectors.EVENT_READ, "end")
        thread = threading.Thread(target=_serve, args=(selector,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(there.close)
        yield
    here.close()


def _serve(selector: selectors.BaseSelector) -> None:
    hurry()
    with ExitStack() as connections:
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if key.data == "end":
                    return
                if key.data == "listener":
                    selector.register(connections.enter_context(sock.accept()[0]), selectors.EVENT_READ)
                    continue
                message = b""
                with suppress(OSError):
                    message = sock.recv(4096)
                    sock.sendall(_answer(message))
                if not message or message.startswith((b"GET ", b"X")):
                    selector.unregister(sock)
                    sock.close()
