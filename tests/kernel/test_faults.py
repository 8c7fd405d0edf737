"""Whose fault a failed connect of the sidecar is, by routes, packet filters and neighbours of a real kernel.

A failure of this host says nothing about a server. The network namespace of each test has its own routes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from clb_discovery.checks.connect import OwnFaultError, connect, endpoint, open_socket, tcp_connect
from clb_discovery.checks.exchange import Exchange
from clb_discovery.checks.health import Result
from clb_discovery.config.checks import parse_check
from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Check, Request, Target
from clb_discovery.sidecar.health import probe as probes
from tests.support import namespaces
from tests.support.cgroups import entered
from tests.support.kernel_objects import foreign_filter
from tests.support.moody import moody_servers
from tests.support.pace import patient
from tests.support.router import ERRORS, host_behind, router
from tests.support.tun import ip, open_tun

LONGEST: Final = patient(20)
"""Seconds after which a connect of a test is given up."""
PORT: Final = 9
ANSWERS: Final = {error: answer for error, answer in ERRORS.items() if answer}
ROUTES: Final = {
    "none": errno.ENETUNREACH,
    "unreachable": errno.EHOSTUNREACH,
    "prohibit": errno.EACCES,
    "blackhole": errno.EINVAL,
}
"""Types of routes, as iproute2 names them, and how a connect ends there."""
BUSY: Final = """
import ctypes, socket, struct, sys
instructions = struct.pack("=HBBI", 0, 0, 0, 0) * 4095 + struct.pack("=HBBI", 6, 0, 0, 65536)
room = ctypes.create_string_buffer(instructions)
program = struct.pack("@HP", 4096, ctypes.addressof(room))
sock = socket.socket(fileno=int(sys.argv[1]))
print(flush=True)
while True:
    sock.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER checks the program while it has the socket
"""


@pytest.fixture
def namespace() -> Iterator[Path]:
    """Return a network namespace of its own."""
    with namespaces.by_mount() as found:
        yield found


def fate(host: str, port: int = PORT) -> OSError | None:
    """Return how a connect of a check or a probe fails; None if it does not."""

    async def fails() -> OSError | None:
        try:
            async with asyncio.timeout(LONGEST):
                await tcp_connect(parse_address(host), port)
        except OSError as error:
            return error
        return None

    return asyncio.run(fails())


def fate_in(
    namespace: Path, host: str, prepared: Callable[[], AbstractContextManager[object]] = nullcontext
) -> tuple[type[OSError], int | None]:
    """Return the kind of failure of a connect in a namespace, and its number."""

    def work() -> OSError | None:
        with prepared():
            return fate(host)

    error = namespaces.inside(namespace, work)
    assert error is not None
    return type(error), error.errno


@pytest.mark.parametrize("host", ["10.98.0.7", "fd98::7"])
@pytest.mark.parametrize("kind", ROUTES)
def test_a_missing_route_is_a_fault_of_this_host(namespace: Path, kind: str, host: str) -> None:
    """The connect ends in the call, and nothing is sent."""
    if kind != "none":
        ip("-n", namespace.name, "route", "add", kind, f"{host}/{128 if ':' in host else 32}")
    assert fate_in(namespace, host) == (OwnFaultError, ROUTES[kind])


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("error", ANSWERS)
def test_an_icmp_error_of_another_host_is_an_answer(namespace: Path, error: str, *, ipv6: bool) -> None:
    """Whatever its code: the server cannot be reached from here."""
    kind, _ = fate_in(namespace, host_behind(error, ipv6=ipv6), router)
    assert kind is not OwnFaultError


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_an_icmp_error_that_ends_no_connect_is_an_answer(namespace: Path, *, ipv6: bool) -> None:
    """The kernel has put it into the error queue, and has not noted the error yet, or never does."""
    host = host_behind("host unreachable", ipv6=ipv6)

    async def ending() -> type[OSError] | None:
        family, target = endpoint(parse_address(host), PORT)
        with LateSocket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock, kept_busy(sock):
            try:
                async with asyncio.timeout(LONGEST):
                    await connect(sock, target)
            except OSError as error:
                return type(error)
        return None

    def work() -> type[OSError] | None:
        with router():
            return asyncio.run(ending())

    assert namespaces.inside(namespace, work) is OSError


class LateSocket(socket.socket):
    """Reads an error before it is asked for it: the kernel tells it only once if it has ended no connect."""

    def getsockopt(self, level: int, name: int, size: int = 0) -> Any:  # noqa: ANN401 - an integer, or bytes of this size
        """Return an option."""
        if name == socket.SO_ERROR:
            super().getsockopt(level, name)
        return super().getsockopt(level, name, size) if size else super().getsockopt(level, name)


@contextmanager
def kept_busy(sock: socket.socket) -> Iterator[None]:
    """Let system calls of another process have a socket nearly all the time while the block runs."""
    command = [sys.executable, "-c", BUSY, str(sock.fileno())]
    with subprocess.Popen(command, pass_fds=[sock.fileno()], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("error", [error for error in ANSWERS if error != "host unreachable"])
def test_an_icmp_error_of_this_host_is_its_own_fault(namespace: Path, error: str, *, ipv6: bool) -> None:
    """A rule of its packet filter rejects the connect."""
    kind, _ = fate_in(namespace, host_behind(error, ipv6=ipv6), partial(router, is_here=True))
    assert kind is OwnFaultError


@pytest.mark.parametrize("host", ["10.97.0.7", "fd97::7"])
def test_a_neighbour_that_has_vanished_is_no_fault_of_this_host(namespace: Path, host: str) -> None:
    """It answers no ARP, and this host reports that to itself."""

    def prepared() -> AbstractContextManager[object]:
        tap, _ = open_tun("10.97.0.1/24", "fd97::1/64", with_neighbours=True)
        return open(tap, "rb", buffering=0)  # noqa: PTH123 - it closes the descriptor

    kind, number = fate_in(namespace, host, prepared)
    assert (kind is not OwnFaultError, number) == (True, errno.EHOSTUNREACH)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_reset_is_an_answer(host: str) -> None:
    """Also of this host: then the server is here."""
    with moody_servers(host) as (server,):
        server.refuse()
        error = fate(*server.target)
        assert (type(error), error and error.errno) == (ConnectionRefusedError, errno.ECONNREFUSED)
        server.accept()
        assert fate(*server.target) is None


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", (socket.IPPROTO_IP, 11)), ("::1", (socket.IPPROTO_IPV6, 25))])
def test_an_icmp_error_does_not_end_a_connection(host: str, name: tuple[int, int]) -> None:
    """Once it is established, the error queue is off again."""

    async def option() -> int:
        with moody_servers(host) as (server,), open_socket(endpoint(parse_address(host), 1)[0]) as sock:
            await connect(sock, server.target)
            return sock.getsockopt(*name)

    assert asyncio.run(option()) == 0


def test_a_rule_of_this_host_that_drops_packets_looks_like_silence(cgroup: Path) -> None:
    """Nothing tells that the packet never left, so a check or a probe finds no answer."""

    async def wait(target: tuple[str, int]) -> None:
        async with asyncio.timeout(0.5):
            await tcp_connect(parse_address(target[0]), target[1])

    with moody_servers("127.0.0.1") as (server,):
        asyncio.run(wait(server.target))
        with foreign_filter(cgroup), entered(cgroup), pytest.raises(TimeoutError):
            asyncio.run(wait(server.target))


def check(host: str, kind: str) -> Coroutine[Any, Any, Result]:
    """Return a check of a server."""
    request = parse_check(kind) or Request()
    return Exchange("1").check(Target(parse_address(host), PORT, Check(request, timeout=LONGEST)))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", ["tcp", "http://web.example/", "https://web.example/"])
def test_a_check_does_not_meet_itself(namespace: Path, host: str, kind: str) -> None:
    """Where nothing listens on a port that this host gives to connects, a socket can get it and connect to itself."""

    def work() -> Result:
        only_port(PORT)
        return asyncio.run(check(host, kind))

    assert namespaces.inside(namespace, work) == Result(passed=False, reason="Connection refused")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_probe_does_not_meet_itself(namespace: Path, host: str) -> None:
    """As a check."""

    def work() -> probes.Result:
        only_port(PORT)
        return asyncio.run(probes.probe(parse_address(host), PORT))

    assert namespaces.inside(namespace, work) is probes.Result.DOWN


def only_port(port: int) -> None:
    """Leave a single port for connects in the namespace of this thread."""
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0", encoding="ascii")
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{port} {port}", encoding="ascii")
