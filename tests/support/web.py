"""HTTP servers inside the test whose pages have the server's name, and a client."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from tests.support.contract import read_status


class WebServer(ThreadingHTTPServer):
    """An HTTP server on one address."""

    request_queue_size = 1024

    def __init__(self, host: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Page)
        self.name = f"[{host}]:{self.server_port}" if ":" in host else f"{host}:{self.server_port}"
        self.served = 0

    def server_bind(self) -> None:
        """Bind, without the base class's look-up of a host name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]


class _Page(BaseHTTPRequestHandler):
    server: WebServer
    timeout: ClassVar[float] = 20

    def do_GET(self) -> None:
        """Send the name of this server."""
        self.server.served += 1
        page = self.server.name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Log nothing."""


def get(port: int, path: str) -> str:
    """Fetch a page of a server on 127.0.0.1; a document of `status` is checked against its schema."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    if path == "/status.json":
        read_status(text)
    return text


@contextmanager
def web_servers(*hosts: str) -> Iterator[list[WebServer]]:
    """Serve on each host, on a port of its own, while the block runs."""
    with ExitStack() as stack:
        servers = [stack.enter_context(WebServer(host)) for host in hosts]
        for server in servers:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield servers
