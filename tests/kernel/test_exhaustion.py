"""What runs out: descriptors, places for connections, time. The sidecar goes on, and says so in few lines."""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.connections import MOST, PATIENCE
from tests.support.in_process import STOPS_WITHIN
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, pool, sidecar, wait_for_pool
from tests.support.srv_web import VIP, WEB, resolver, serve, weighted
from tests.support.web import get

HEAD: Final = b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def descriptors(found: Sidecar) -> int:
    """Return how many a sidecar has open."""
    return len(os.listdir(f"/proc/{found.process.pid}/fd"))


@contextmanager
def metered(
    instance: str, cgroup: Path, directory: Path, knot: KnotServer, *options: str
) -> Iterator[tuple[Sidecar, int]]:
    """Run a sidecar over the SRV name with --metrics; yield it and its port."""
    port = free_port()
    rest = [*WEB, *resolver(knot), "--max-ttl", "1s", "--hold", "0s", "--metrics", f"127.0.0.1:{port}", *options]
    with sidecar(instance, cgroup, directory, rest) as found:
        yield found, port


def connected(port: int) -> socket.socket:
    """Connect to the page."""
    return socket.create_connection(("127.0.0.1", port), timeout=patient(20))


def is_closed(sock: socket.socket) -> bool:
    """Tell whether the other side has closed; what it sent is thrown away."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in {errno.ECONNRESET, errno.EPIPE}
    return True


def test_an_ordinary_user_cannot_use_descriptors_up(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Two thousand idle connections leave some descriptors, answers for others, and discovery as it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with KnotServer() as knot, ExitStack() as stack:
            serve(knot, "127.0.0.2:80")
            with metered(instance, cgroup, tmp_path, knot) as (found, port):
                before = descriptors(found)
                for number in range(2000):
                    stack.enter_context(connected(port))
                    if number % 200 == 0:
                        assert get(port, "/healthz") == "ready\n"
                        assert "clb_" in get(port, "/metrics")
                assert descriptors(found) <= before + MOST + 20
                serve(knot, "127.0.0.2:80", "127.0.0.3:80")
                wait_for_pool(instance, VIP, weighted("127.0.0.2:80", "127.0.0.3:80"))
                began = time.monotonic()
                assert found.stop() == 0
                assert time.monotonic() - began < STOPS_WITHIN
                assert len(found.lines()) < 30
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_slow_clients_are_ended(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Ten seconds are for a whole request, however its bytes come, for the next one, and for taking the answer."""
    with KnotServer() as knot, ExitStack() as stack:
        serve(knot, "127.0.0.2:80")
        with metered(instance, cgroup, tmp_path, knot) as (found, port):
            before = descriptors(found)
            idle, slow, kept, posting = (stack.enter_context(connected(port)) for _ in range(4))
            kept.sendall(HEAD + b"\r\n")
            posting.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nx")
            greedy = stack.enter_context(socket.socket())
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            greedy.connect(("127.0.0.1", port))
            greedy.sendall((HEAD + b"\r\n") * 500)  # and reads nothing
            began = time.monotonic()
            ended: dict[socket.socket, float] = {}
            octets = iter(HEAD * 10)
            while len(ended) < 4 and time.monotonic() - began < patient(PATIENCE) + 5:
                if slow not in ended:
                    slow.setblocking(True)
                    try:
                        slow.send(bytes([next(octets)]))
                    except OSError:
                        ended.setdefault(slow, time.monotonic() - began)
                for sock in (idle, slow, kept, posting):
                    if sock not in ended and is_closed(sock):
                        ended[sock] = time.monotonic() - began
                time.sleep(0.2)
            assert ended.keys() == {idle, slow, kept, posting}
            assert all(PATIENCE - 2 < seconds < patient(PATIENCE + 3) for seconds in ended.values()), ended.values()
            wait_until(lambda: descriptors(found) <= before, "the greedy one is ended, too")
            assert get(port, "/healthz") == "ready\n"
