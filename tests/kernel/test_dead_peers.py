"""Open connections to a server whose host has vanished."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery.datapath import probe
from clb_discovery.layout.structs import FEATURE_OPTIONS
from clb_discovery.model.servers import PassiveHealth
from tests.support.namespaces import by_mount, inside
from tests.support.plane import NO_TRACKING, Plane, default_plane, virtual_server
from tests.support.sidecar import clb
from tests.support.spares import loaded_instance
from tests.support.sysctls import sysctl
from tests.support.transparency import MPTCP_ENABLED, PORT, SIDES, Side, multipath

instance = loaded_instance

HAS_OPTIONS: Final = bool(probe.features() & FEATURE_OPTIONS)
needs_options = pytest.mark.skipif(not HAS_OPTIONS, reason="lacks options of sockets")
TABLE: Final = """
[[service]]
name = "web"
vip = "10.64.0.1:80"
servers = ["10.0.0.1:80"]
dead-after = "15s"
"""
PATIENCE: Final = struct.pack("@ll", 40, 0)
"""How long a test waits in a read, for SO_RCVTIMEO."""
HOSTS: Final = {"ipv4": "10.98.7.2", "ipv6": "fd98:7::2", "mapped": "10.98.7.2"}
"""The server, behind a link of its own."""
KEPT: Final = (
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
)
"""Options that decide when a connection is dead."""
_plane_of_module = default_plane  # only its programs can do this


class Host:
    """A host with one server, which can vanish."""

    def __init__(self, namespace: Path, link: str, server: socket.socket) -> None:
        """Take what makes it vanish."""
        self._namespace = namespace
        self._link = link
        self.server = server

    def vanish(self) -> None:
        """Drop all packets to it and from it, as a cut link does, without any notice to its peers."""
        command = ["ip", "-n", self._namespace.name, "link", "set", self._link, "address", "02:00:00:00:00:99"]
        subprocess.run(command, check=True)
        for family in ("-4", "-6"):
            subprocess.run(["ip", "-n", self._namespace.name, family, "route", "flush", "table", "main"], check=True)


@contextmanager
def host(side: Side) -> Iterator[Host]:
    """Run a server in a network namespace behind a link."""
    ours, theirs = f"clb{uuid4().hex[:6]}", f"clb{uuid4().hex[:6]}"
    with ExitStack() as stack:
        namespace = stack.enter_context(by_mount())
        subprocess.run(
            ["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace.name], check=True
        )
        stack.callback(subprocess.run, ["ip", "link", "delete", ours], check=True)
        for where, link, last in ((["ip"], ours, 1), (["ip", "-n", namespace.name], theirs, 2)):
            subprocess.run([*where, "address", "add", f"10.98.7.{last}/24", "dev", link], check=True)
            subprocess.run([*where, "address", "add", f"fd98:7::{last}/64", "dev", link, "nodad"], check=True)
            subprocess.run([*where, "link", "set", link, "up"], check=True)
        address = HOSTS[side.name]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def listen() -> socket.socket:
            return socket.create_server((address, 8080), family=family, backlog=64)

        yield Host(namespace, theirs, stack.enter_context(inside(namespace, listen)))


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


def publish(plane: Plane, side: Side, health: PassiveHealth, dead_after_ms: int) -> None:
    """Publish the host as the only server of a VIP."""
    name = HOSTS[side.name]
    server = f"[{name}]:8080" if ":" in name else f"{name}:8080"
    plane.publish(virtual_server(side.at(PORT), [server], health=replace(health, dead_after_ms=dead_after_ms)))


def connected(plane: Plane, side: Side, *options: tuple[int, int, int]) -> socket.socket:
    """Return a connection of an application that has set these options, and no other."""
    (sock,) = plane.client.make(side.target(PORT))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
    for option in options:
        sock.setsockopt(*option)
    sock.connect(side.target(PORT))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, PATIENCE)
    return sock


def read(sock: socket.socket) -> None:
    """Wait for data."""
    sock.recv(1)


def write(sock: socket.socket) -> None:
    """Send, then wait for data."""
    sock.send(b"hello")
    sock.recv(1)


def seconds_of(call: Callable[[socket.socket], None], sock: socket.socket) -> float:
    """Return how long a call takes that ends with ETIMEDOUT."""
    begun = time.monotonic()
    with pytest.raises(OSError, match="timed out") as caught:
        call(sock)
    assert caught.value.errno == errno.ETIMEDOUT
    return time.monotonic() - begun


def settings(sock: socket.socket) -> list[int]:
    """Return the options that decide when a connection is dead."""
    return [sock.getsockopt(*option) for option in KEPT]


@needs_options
@pytest.mark.parametrize(
    ("side", "health"),
    [*((side, PassiveHealth()) for side in SIDES), (SIDES[0], NO_TRACKING)],
    ids=[*(side.name for side in SIDES), "lean"],
)
def test_connection_to_a_host_that_vanished_ends(plane: Plane, side: Side, health: PassiveHealth) -> None:
    """A read ends within the time and two seconds, with data on the way or without; so does an idle connection."""
    with host(side) as server, ThreadPoolExecutor(3) as threads:
        publish(plane, side, health, 15_000)
        sockets = [connected(plane, side) for _ in range(3)]
        if MPTCP_ENABLED.exists():
            sockets.append(multipath(plane.cgroup, side.target(PORT)))
            sockets[-1].connect(side.target(PORT))
        time.sleep(0.3)
        begun = time.monotonic()
        server.vanish()
        vanishing = time.monotonic() - begun
        reading = threads.submit(seconds_of, read, sockets[0])
        writing = threads.submit(seconds_of, write, sockets[1])
        took = [reading.result(), writing.result()]
        print(side.name, *(f"{one:.2f} s" for one in took))
        assert all(14 - vanishing < one < 17 for one in took)
        time.sleep(max(0.0, begun + 17 - time.monotonic()))
        assert sockets[2].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
        for sock in sockets:
            sock.close()


@needs_options
def test_shortest_time(plane: Plane, side: Side) -> None:
    """Three seconds are three seconds: of an idle connection from its beginning, of a busy one from the loss."""
    with host(side) as server, ThreadPoolExecutor(2) as threads:
        publish(plane, side, PassiveHealth(), 3_000)
        begun = time.monotonic()
        sockets = [connected(plane, side) for _ in range(2)]
        server.vanish()
        before = time.monotonic() - begun
        idle, busy = threads.map(seconds_of, [read, write], sockets)
    print(side.name, f"idle {idle:.2f} s, {before:.2f} s after it began; busy {busy:.2f} s")
    assert before + idle > 2.5
    assert idle < 5
    assert 2.5 < busy < 5


@needs_options
@pytest.mark.parametrize(
    "own",
    [
        [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)],
        [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300)],
    ],
    ids=["TCP_USER_TIMEOUT", "keepalive"],
)
def test_choice_of_the_application_stays(plane: Plane, side: Side, own: list[tuple[int, int, int]]) -> None:
    """A socket whose application has set a time is left as it is."""
    with host(side):
        publish(plane, side, PassiveHealth(), 0)
        before = settings(connected(plane, side, *own))
        publish(plane, side, PassiveHealth(), 15_000)
        assert settings(connected(plane, side, *own)) == before


@needs_options
def test_keepalive_without_a_time_is_no_choice(plane: Plane, side: Side) -> None:
    """The two hours of the kernel are not what an application wants that turns keepalive on."""
    with host(side):
        publish(plane, side, PassiveHealth(), 15_000)
        sock = connected(plane, side, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        assert settings(sock) == [15_000, 1, 9, 3, 2]
        assert settings(connected(plane, side)) == [15_000, 1, 9, 3, 2]


@needs_options
@pytest.mark.parametrize("seconds", [600, 86_400])
def test_time_of_the_system_is_no_choice(plane: Plane, side: Side, seconds: int) -> None:
    """The option returns it to applications that have set none; each network namespace has one."""
    if plane.follows_every_state:
        pytest.skip("lacks types of the kernel, so the option is all that programs see")
    with host(side), sysctl("net/ipv4/tcp_keepalive_time", seconds):
        publish(plane, side, PassiveHealth(), 15_000)
        assert settings(connected(plane, side, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))) == [15_000, 1, 9, 3, 2]


@needs_options
def test_connection_with_a_living_peer_stays(plane: Plane, side: Side) -> None:
    """An idle connection outlives the time as long as the host answers."""
    with host(side) as server:
        publish(plane, side, PassiveHealth(), 3_000)
        sock = connected(plane, side)
        time.sleep(5)
        sock.send(b"x")
        peer, _ = server.server.accept()
        with peer:
            assert peer.recv(1) == b"x"


def test_off_leaves_it_to_the_kernel(plane: Plane, side: Side) -> None:
    """Without a time no option is set."""
    with host(side):
        publish(plane, side, PassiveHealth(), 0)
        with socket.socket() as fresh:
            assert settings(connected(plane, side)) == settings(fresh)


def test_kernel_that_shows_no_options_refuses(instance: str, cgroup: Path, config: Path) -> None:
    """The sidecar ends with a sentence that names the cause and the fix, and so does `check`; others accept it."""
    config.write_text(TABLE)
    options = ["--instance", instance, "--cgroup", str(cgroup), "--config", str(config)]
    for command in (["run", "--once"], ["check"]):
        found = clb(*command, *options)
        said = " ".join((found.stdout + found.stderr).split())
        assert ("web: --dead-after needs Linux 6.1 or later" in said) is not HAS_OPTIONS
        assert found.returncode == (0 if HAS_OPTIONS else 3)
