"""Real Redis servers, and their counts of connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.support.pace import patient
from tests.support.process import accepts, free_port, running, wait_until


class RedisServer:
    """One redis-server on one address."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._own = 0

    def __str__(self) -> str:
        """Return the form that status shows."""
        return f"{self.host}:{self.port}"

    def take_connections(self) -> int:
        """Return how many connections it has accepted since the last call, without ours."""
        with socket.create_connection((self.host, self.port), timeout=patient(5)) as sock:
            sock.sendall(b"INFO stats\r\n")
            text = b""
            while not text.endswith(b"\r\n\r\n") and b"total_connections_received:" not in text:
                text += sock.recv(65536)
        line = next(line for line in text.splitlines() if line.startswith(b"total_connections_received:"))
        total = int(line.split(b":")[1])
        taken, self._own = total - self._own - 1, total
        return taken


@contextmanager
def redis_servers(directory: Path, *hosts: str) -> Iterator[list[RedisServer]]:
    """Run one redis-server for each host, each on a port of its own."""
    with ExitStack() as stack:
        servers = [RedisServer(host, free_port()) for host in hosts]
        for server in servers:
            command = ["redis-server", "--bind", server.host, "--port", str(server.port), "--protected-mode", "no"]
            log = directory / f"redis-{server.port}.log"
            stack.enter_context(running([*command, "--save", "", "--dir", str(directory)], log))
        for server in servers:
            wait_until(partial(accepts, server.port, server.host), f"redis serves on {server}")
            server.take_connections()
        yield servers
