"""A service manager that receives messages by the protocol of sd_notify(3)."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.support.pace import patient

PATIENCE = patient(60)


class ServiceManager:
    """Listens on the socket of NOTIFY_SOCKET."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address: str = listener.getsockname()

    def next(self) -> list[str]:
        """Wait for the next message and return its lines.

        :raises TimeoutError: if there is none.
        """
        return self._listener.recv(4096).decode().split("\n")

    def until(self, line: str) -> list[str]:
        """Skip messages until one has this line; return that one."""
        heard: list[list[str]] = []
        while not heard or line not in heard[-1]:
            try:
                heard.append(self.next())
            except TimeoutError:
                raise AssertionError(f"waited in vain for {line!r}; there was {heard}") from None
        return heard[-1]

    def heard(self) -> list[list[str]]:
        """Return all messages that have arrived."""
        messages = []
        while select.select([self._listener], [], [], 0)[0]:
            messages.append(self.next())
        return messages


@contextmanager
def service_manager(directory: Path) -> Iterator[ServiceManager]:
    """Listen on a socket in a directory while the block runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        path = directory / f"notify-{uuid4().hex[:8]}"
        listener.bind(str(path))
        path.chmod(0o666)  # a service may have any user
        listener.settimeout(PATIENCE)
        yield ServiceManager(listener)
