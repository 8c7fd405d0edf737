"""HTTP servers inside the test that can hang or fail, each with a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress


class WebServer:
    """Answers every request with one status. While it hangs it accepts nothing, so its kernel does all it ever does."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Serve.

        :param port: 0 for a free one.
        """
        self._host = host
        self._listener = self._listening(port)
        self.port: int = self._listener.getsockname()[1]
        self.name = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.status = 200
        self.hangs = False
        self._ends = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        """End it: connects are refused."""
        self._ends = True
        self._thread.join()
        self._listener.close()

    def start(self) -> None:
        """Serve again at the same port."""
        self._listener, self._ends = self._listening(self.port), False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _listening(self, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, port), family=family, backlog=4096)
        listener.settimeout(0.05)
        return listener

    def _serve(self) -> None:
        while not self._ends:
            if self.hangs:
                time.sleep(0.01)
                continue
            with suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(0.2)
                    if connection.recv(4096):
                        connection.sendall(b"HTTP/1.1 %d Status\r\nContent-Length: 0\r\n\r\n" % self.status)


@contextmanager
def web_servers(*hosts: str, port: int = 0) -> Iterator[list[WebServer]]:
    """Serve on each host, on a port of its own or on this one."""
    with ExitStack() as stack:
        servers = [WebServer(host, port) for host in hosts]
        for server in servers:
            stack.callback(server.stop)
        yield servers
