"""A host with services in DNS and in the file, tiers, weights, an ejected server and an empty pool."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.support.contract import read_status
from tests.support.knot import KnotServer
from tests.support.process import free_port
from tests.support.sidecar import Sidecar, sidecar
from tests.support.sockets import Target, socket_maker

HOSTILE: Final = "</title><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u05d0"
"""The name that an attacker gives to a service."""
REDIS: Final = "10.64.0.1"
SERVERS: Final = {
    "redis": (("10.0.3.7", 31001, 10), ("10.0.3.8", 29114, 20), ("10.0.4.2", 30550, 30), ("10.0.4.9", 28807, 30)),
    "postgresql": (("10.0.5.11", 5432, 100), ("10.0.5.12", 5432, 100)),
    "search": (("10.0.7.20", 9200, 1), ("10.0.7.21", 9200, 1), ("10.0.7.22", 9200, 2)),
}
"""Address, port and weight of real servers that listen."""
DEAD: Final = ("10.0.3.9", 31002, 10)
"""A real server of redis that refuses."""
NEW: Final = ("10.0.3.10", 31003, 30)
"""A real server of redis that is added later."""

_CONFIG: Final = f"""\
[[service]]
name = "redis"
srv = "_redis._tcp.example"
vip = "{REDIS}:6379"
eject-time = "60s"

[[service]]
name = "postgresql"
srv = "_postgresql._tcp.shop"
vip = "10.64.0.2:5432,[fd00:64::2]:5432"

[[service]]
name = "search"
servers = [{{ address = "10.0.7.20:9200" }}, {{ address = "10.0.7.21:9200" }},
           {{ address = "10.0.7.22:9200", weight = 2 }}]
vip = "10.64.0.3"
algorithm = "round-robin"

[[service]]
name = {json.dumps(HOSTILE, ensure_ascii=False)}
servers = ["10.0.9.1:80"]
vip = "10.64.0.9:80/udp"
algorithm = "least-conn"
"""
_TRAFFIC: Final = ((REDIS, 6379, 12), ("10.64.0.2", 5432, 3), ("10.64.0.3", 9200, 6))
"""Address, port and connects every tenth of a second."""


class Scene:
    """The host, and the changes to it."""

    def __init__(self, origin: str, knot: KnotServer, found: Sidecar) -> None:
        self.origin = origin
        self.sidecar = found
        self._knot = knot

    def status(self) -> dict[str, Any]:
        """Return /status.json."""
        with urllib.request.urlopen(f"{self.origin}/status.json", timeout=10) as answer:  # noqa: S310 - our own http
            return read_status(answer.read())

    def add_server(self) -> None:
        """Add one more real server of redis to DNS."""
        self._knot.write(_records("redis", [*SERVERS["redis"], DEAD, NEW]))

    def lose_a_zone(self) -> None:
        """Let the queries for postgresql fail."""
        self._knot.purge("shop")


@contextmanager
def scene(instance: str, cgroup: Path, directory: Path) -> Iterator[Scene]:
    """Run the host while the block runs, in the private network of the tests."""
    config = directory / "clb.toml"
    config.write_text(_CONFIG, encoding="utf-8")
    port = free_port()
    with ExitStack() as stack:
        servers = [stack.enter_context(_server(host, number)) for one in SERVERS.values() for host, number, _ in one]
        servers.append(stack.enter_context(_server(*NEW[:2])))
        stack.enter_context(_address(DEAD[0]))
        knot = stack.enter_context(KnotServer({"example": "", "shop": ""}))
        knot.write(_records("redis", [*SERVERS["redis"], DEAD]))
        knot.write(_records("postgresql", SERVERS["postgresql"], standby=True), "shop")
        options = ["--config", str(config), "--resolver", knot.address, "--metrics", f"127.0.0.1:{port}"]
        found = stack.enter_context(sidecar(instance, cgroup, directory, options))
        stack.enter_context(_traffic(cgroup, servers))
        there = Scene(f"http://127.0.0.1:{port}", knot, found)
        found.wait_for(lambda: '"ejected"' in json.dumps(there.status()), "the server that refuses is ejected")
        yield there


def _records(service: str, servers: Sequence[tuple[str, int, int]], *, standby: bool = False) -> str:
    lines = []
    for number, (host, port, weight) in enumerate(servers):
        priority = number if standby else 0
        lines += [f"_{service}._tcp SRV {priority} {weight} {port} {service}{number}", f"{service}{number} A {host}"]
    return "\n".join(lines)


@contextmanager
def _address(host: str) -> Iterator[None]:
    """Add an address to the tests' own network while the block runs."""
    subprocess.run(["ip", "address", "add", f"{host}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "delete", f"{host}/32", "dev", "lo"], check=True)


@contextmanager
def _server(host: str, port: int) -> Iterator[socket.socket]:
    with _address(host), socket.create_server((host, port), backlog=4096) as server:
        server.setblocking(False)
        yield server


def _accepted(servers: Sequence[socket.socket]) -> Iterator[socket.socket]:
    for server in servers:
        with suppress(BlockingIOError):
            while True:
                yield server.accept()[0]


@contextmanager
def _traffic(cgroup: Path, servers: Sequence[socket.socket]) -> Iterator[None]:
    """Connect all the time, also to a pool without servers. Some connections stay open."""
    ended = threading.Event()
    with socket_maker(cgroup) as client, ExitStack() as open_ones:
        for host, port, each in _TRAFFIC:
            for sock in client.make((host, port), 3 * each):
                sock.connect_ex((host, port))
        for sock in _accepted(servers):
            open_ones.enter_context(sock)

        def connect() -> None:
            while not ended.wait(0.1):
                for host, port, each in _TRAFFIC:
                    client.dial((host, port), each)
                _refused(client.make(("fd00:64::2", 5432))[0], ("fd00:64::2", 5432))
                for sock in _accepted(servers):
                    sock.close()

        thread = threading.Thread(target=connect)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _refused(sock: socket.socket, target: Target) -> None:
    with sock:
        assert sock.connect_ex(target) != 0
