"""Open connections when their real server leaves the pool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.cgroups import inside
from tests.support.knot import KnotServer
from tests.support.listeners import Listener, listening
from tests.support.process import running, wait_until
from tests.support.sidecar import sidecar, wait_for_pool
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP: Final = "10.64.0.1"
CLIENT: Final = """
import socket, sys, time
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
sock = socket.socket(socket.AF_INET, kind)
sock.connect((sys.argv[2], int(sys.argv[3])))
print("connected", flush=True)
try:
    print("read", len(sock.recv(1)), flush=True)
except OSError as error:
    print("failed", error.errno, flush=True)
"""


def zone(listener: Listener, service: str) -> str:
    """Return the record of one target."""
    return f"_{service} SRV 0 1 {listener.port} one\none A {listener.name.split(':')[0]}\n"


@contextmanager
def connected(cgroup: Path, kind: str, port: int, directory: Path) -> Iterator[Path]:
    """Run a program that connects and then reads; yield the file with its reports."""
    said = directory / f"client-{kind}"
    command = inside(cgroup, [sys.executable, "-c", CLIENT, kind, VIP, str(port)])
    with running(command, said):
        wait_until(lambda: "connected" in said.read_text(), "the client has connected")
        yield said


@pytest.mark.parametrize(
    ("kind", "on_remove", "closed"), [("tcp", "drain", False), ("tcp", "reset", True), ("udp", "drain", True)]
)
def test_open_sockets_of_a_removed_server(
    instance: str, cgroup: Path, tmp_path: Path, kind: str, on_remove: str, *, closed: bool
) -> None:
    """TCP connections drain, or are reset if configured; UDP sockets are closed, so the application connects again."""
    service = f"app._{kind}"
    with (
        KnotServer() as knot,
        listening("127.0.0.1", "127.0.0.2", udp=kind == "udp") as (first, second),
    ):
        knot.write(zone(first, service))
        options = ["--srv", f"_{service}.example={VIP}:80", "--resolver", knot.address, "--hold", "0s"]
        options += ["--real-range", "127.0.0.0/8", "--on-remove", on_remove]
        with sidecar(instance, cgroup, tmp_path, options) as found, connected(cgroup, kind, 80, tmp_path) as said:
            knot.write(zone(second, service))
            wait_for_pool(instance, VIP, {second.name: 1})
            if closed:
                found.wait_for(lambda: "failed 103" in said.read_text(), "the client's read fails with ECONNABORTED")
                found.wait_for(lambda: "sockets closed" in found.log.read_text(), "the sidecar says so")
                assert [line["count"] for line in found.lines() if line["event"] == "sockets closed"] == [1]
            else:
                found.wait_for(lambda: len(found.lines()) >= 4, "the removal is logged")
                assert said.read_text() == "connected\n"
                assert "sockets closed" not in {line["event"] for line in found.lines()}


def test_sockets_of_others_stay(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A direct connection to the same server survives a reset."""
    with KnotServer() as knot, listening("127.0.0.1", "127.0.0.2") as (first, second):
        knot.write(zone(first, "app._tcp"))
        options = ["--srv", f"_app._tcp.example={VIP}:80", "--resolver", knot.address, "--hold", "0s"]
        options += ["--real-range", "127.0.0.0/8", "--on-remove", "reset"]
        with sidecar(instance, cgroup, tmp_path, options) as found, connected(cgroup, "tcp", 80, tmp_path) as said:
            direct = subprocess.Popen(
                [sys.executable, "-c", CLIENT, "tcp", "127.0.0.1", str(first.port)], stdout=subprocess.PIPE, text=True
            )
            try:
                assert direct.stdout is not None
                assert direct.stdout.readline() == "connected\n"
                knot.write(zone(second, "app._tcp"))
                found.wait_for(lambda: "failed" in said.read_text(), "our connection is closed")
                assert direct.poll() is None
            finally:
                direct.kill()
                direct.communicate()
