"""Connects from other network namespaces are balanced, and change the health of no server."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from clb_discovery.datapath import bpf
from clb_discovery.datapath.loading import home, loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.documents.causes import Cause
from clb_discovery.documents.trace import Kind
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model import own_servers
from clb_discovery.model.address import format_address
from clb_discovery.model.servers import Algorithm, PassiveHealth
from tests.support import namespaces
from tests.support.cgroups import entered, run_inside
from tests.support.dataplane import publish, refusal
from tests.support.heard import heard
from tests.support.loading import loader_of_tests, loading
from tests.support.moody import MoodyServer, moody_servers
from tests.support.pace import patient
from tests.support.plane import HOST, VIP4, Plane, default_plane, real, target_of, unused, virtual_server
from tests.support.process import wait_until
from tests.support.router import host_behind, router
from tests.support.sidecar import load
from tests.support.sockets import SocketMaker, outcome, socket_maker

SILENT_AFTER: Final = 100
FOR_GOOD: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000, silent_after_ms=SILENT_AFTER)
BRIEF: Final = replace(FOR_GOOD, eject_first_ms=300, eject_most_ms=300)
MANY: Final = 40
"""After so many connects each of two servers was drawn, except in less than one run of 10^11."""
SOME: Final = 6
"""Twice as many failures as eject a server."""
_plane_of_module = default_plane


@pytest.fixture
def abroad() -> Iterator[Path]:
    """Return another network namespace; which user made it is nothing that the programs see."""
    with namespaces.by_process() as found:
        yield found


@pytest.fixture
def stranger(plane: Plane, abroad: Path) -> Iterator[SocketMaker]:
    """Return a client in the cgroup and in that namespace."""
    with socket_maker(plane.cgroup, abroad) as found:
        yield found


def double(abroad: Path, server: MoodyServer) -> MoodyServer:
    """Return a server with the same address and port in another namespace."""
    return namespaces.inside(abroad, lambda: MoodyServer(*server.target))


def test_a_user_with_a_namespace_of_his_own_ejects_nobody(plane: Plane, vip: str) -> None:
    """An ordinary user is refused by a loopback interface of his own, as often as he likes."""
    if not namespaces.users_can_make_them():
        pytest.skip("lacks namespaces that users can make")
    host, port = target_of(vip)
    attack = f"ip link set lo up && for _ in $(seq {MANY}); do (: < /dev/tcp/{host}/{port}) && echo connected; done; :"
    with moody_servers(*[HOST[vip]] * 2) as servers:
        plane.publish(virtual_server(vip, [one.name for one in servers], health=FOR_GOOD))
        result = run_inside(plane.cgroup, *namespaces.AS_USER, "bash", "-c", attack)
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr.count("connect: Connection refused") == MANY
        assert sum(plane.connects(vip).values()) == MANY
        assert plane.ejected(vip) == set()
        assert plane.client.dial(target_of(vip), MANY) == ["ok"] * MANY


class Fault(NamedTuple):
    """A way in which a server fails in another namespace."""

    cause: Cause
    make: Callable[[ExitStack, Path, MoodyServer], str]
    """Prepares the namespace for as long as the stack; returns the name of the server."""
    gives_up: bool = False


def refusing(_: ExitStack, abroad: Path, server: MoodyServer) -> str:
    """Listen nowhere."""
    assert abroad.exists()
    return server.name


def silent(stack: ExitStack, abroad: Path, server: MoodyServer) -> str:
    """Answer nothing."""
    other = double(abroad, server)
    stack.callback(other.close)
    namespaces.inside(abroad, other.fall_silent)
    return server.name


def unreachable(stack: ExitStack, abroad: Path, server: MoodyServer) -> str:
    """Route to nowhere."""
    namespaces.inside(abroad, lambda: stack.enter_context(router()))
    host = host_behind("host unreachable", ipv6="[" in server.name)
    return f"[{host}]:80" if ":" in host else f"{host}:80"


FAULTS: Final = [
    Fault(Cause.REFUSED, refusing),
    Fault(Cause.SILENT, silent, gives_up=True),
    Fault(Cause.TIMED_OUT, silent),
    Fault(Cause.UNREACHABLE, unreachable),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[one.cause.name.lower() for one in FAULTS])
def test_failures_elsewhere_change_no_health(
    plane: Plane, vip: str, stranger: SocketMaker, abroad: Path, fault: Fault
) -> None:
    """They are connects, and `trace` shows their outcome; they are no failures, and eject nobody."""
    target = target_of(vip)
    with ExitStack() as stack, moody_servers(*[HOST[vip]] * 2) as (server, spare), heard(plane, target[1]) as kinds:
        name = fault.make(stack, abroad, server)
        plane.publish(virtual_server(vip, [name, real(spare.name, 1, 1)], health=FOR_GOOD))
        sockets = stranger.begun(target, SOME)
        for sock in () if fault.gives_up else sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
        for sock in () if fault.gives_up else sockets:
            wait_until(partial(is_over, sock), "the connect has ended")
        time.sleep(2 * SILENT_AFTER / 1000)
        stranger.close()
        found = plane.servers(vip)[name]
    assert (found.connects, found.failures, found.in_row, found.times_ejected, found.active) == (SOME, 0, 0, 0, 0)
    # Before Linux 6.11, without a backport, an ICMP error looks as if the application had given up.
    unclear = {(Kind.FAILED, Cause.SILENT), (Kind.GIVEN_UP, 0)} if fault.cause is Cause.UNREACHABLE else set()
    assert kinds.pop((Kind.SENT, 0)) == kinds.total() == SOME
    assert kinds.keys() <= {(Kind.FAILED, fault.cause), *unclear}


def is_over(sock: socket.socket) -> bool:
    """Return whether the connect of a socket is over, by its state in tcp_info."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 2  # SYN_SENT


def test_success_elsewhere_is_no_success(plane: Plane, vip: str, stranger: SocketMaker, abroad: Path) -> None:
    """A process cannot keep a dead server in service by a listener of its own."""
    with moody_servers(*[HOST[vip]] * 2) as (dead, spare):
        other = double(abroad, dead)
        plane.publish(virtual_server(vip, [dead.name, real(spare.name, 1, 1)], health=FOR_GOOD))
        dead.refuse()
        assert plane.client.dial(target_of(vip), 2) == ["ECONNREFUSED"] * 2
        assert stranger.dial(target_of(vip), SOME) == ["ok"] * SOME
        assert plane.servers(vip)[dead.name].in_row == 2
        assert plane.client.dial(target_of(vip), 2) == ["ECONNREFUSED", "ok"]
        assert plane.ejected(vip) == {dead.name}
        other.close()


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_probe_is_not_spent_elsewhere(
    plane: Plane, vip: str, stranger: SocketMaker, abroad: Path, algorithm: Algorithm
) -> None:
    """Connects from elsewhere avoid an ejected server until a connect from home has found that it works."""
    with moody_servers(*[HOST[vip]] * 2) as (moody, spare):
        others = [double(abroad, moody), double(abroad, spare)]
        plane.publish(virtual_server(vip, [moody.name, spare.name], algorithm, BRIEF))
        moody.refuse()
        wait_until(lambda: not plane.client.dial(target_of(vip)) or bool(plane.ejected(vip)), "it is ejected")
        before = plane.servers(vip)[moody.name]
        assert stranger.dial(target_of(vip), MANY) == ["ok"] * MANY
        wait_until(lambda: time.monotonic_ns() > before.ejected_until, "it may be probed")
        assert stranger.dial(target_of(vip), MANY) == ["ok"] * MANY
        assert plane.servers(vip)[moody.name] == before
        moody.accept()
        assert plane.client.dial(target_of(vip), MANY) == ["ok"] * MANY
        assert plane.ejected(vip) == set()
        before = plane.servers(vip)[moody.name]
        assert stranger.dial(target_of(vip), MANY) == ["ok"] * MANY
        assert plane.connects(vip)[moody.name] > before.connects
        for other in others:
            other.close()


def test_if_all_servers_are_out_connects_from_elsewhere_try_one(
    plane: Plane, vip: str, stranger: SocketMaker, abroad: Path
) -> None:
    """An attempt is better than a refusal; the server stays out, and its probe is left to home."""
    with moody_servers(HOST[vip]) as (server,):
        other = double(abroad, server)
        plane.publish(virtual_server(vip, [server.name], health=BRIEF))
        plane.mark(vip, [server.name])
        assert stranger.dial(target_of(vip), SOME) == ["ok"] * SOME
        found = plane.servers(vip)[server.name]
        other.close()
    assert (found.connects, found.probing) == (SOME, 0)
    assert found.ejected_until > time.monotonic_ns()


def test_connections_from_elsewhere_are_active(plane: Plane, vip: str, stranger: SocketMaker, abroad: Path) -> None:
    """They are a load for their server as those from home are."""
    with moody_servers(HOST[vip]) as (server,):
        other = double(abroad, server)
        plane.publish(virtual_server(vip, [server.name], Algorithm.LEAST_CONN, FOR_GOOD))
        stranger.connected(target_of(vip), 3)
        assert plane.active(vip) == {server.name: 3}
        stranger.close()
        wait_until(lambda: plane.active(vip) == {server.name: 0}, "they are closed")
        other.close()


def test_a_connect_from_elsewhere_has_the_same_limit(
    plane: Plane, vip: str, stranger: SocketMaker, abroad: Path
) -> None:
    """Nobody waits longer for a silent server because the host judges it alone."""
    with ExitStack() as stack, moody_servers(HOST[vip]) as (server,):
        name = silent(stack, abroad, server)
        plane.publish(virtual_server(vip, [name], health=replace(FOR_GOOD, connect_timeout_ms=1_000)))
        (sock,) = stranger.make(target_of(vip))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        sock.settimeout(None)
        began = time.monotonic()
        assert outcome(sock, target_of(vip)) == "ETIMEDOUT"
        assert 0.9 < time.monotonic() - began < patient(1.5)
        assert plane.servers(vip)[name].failures == 0


def home_of(pins: Pins) -> int:
    """Return the namespace that is home."""
    fd = bpf.open_pin(pins.map(Map.HOME))
    try:
        data = bpf.lookup(fd, elements.FIRST, structs.HOME.size)
        return elements.unpack_home(data or b"").namespace
    finally:
        os.close(fd)


def failures(pins: Pins) -> int:
    """Return how many failed connects are counted for all servers."""
    with Maps(pins) as maps:
        return sum(server.failures for server in maps.servers(maps.read()).values())


def counts(pins: Pins, cgroup: Path, namespace: Path | None = None) -> bool:
    """Return whether failures in a namespace count, by default in that of the test."""
    publish(pins.instance, {VIP4: unused(VIP4, 2)})
    before = failures(pins)
    with socket_maker(cgroup, namespace) as client:
        assert client.dial(target_of(VIP4), SOME) == ["ECONNREFUSED"] * SOME
    return failures(pins) > before


def test_home_is_where_it_was_loaded_last(instance: str, cgroup: Path, abroad: Path) -> None:
    """A data plane that is loaded in a container judges servers by connects from there."""
    pins = Pins(instance)
    namespaces.inside(abroad, lambda: load(instance, cgroup, *loading()))
    assert counts(pins, cgroup, abroad)
    assert not counts(pins, cgroup)
    load(instance, cgroup, *loading())
    assert counts(pins, cgroup)
    assert not counts(pins, cgroup, abroad)


@pytest.mark.parametrize("place", [nullcontext, entered], ids=["outside", "inside"])
def test_a_kernel_that_tells_only_programs_teaches_them(
    instance: str,
    cgroup: Path,
    abroad: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[Path], AbstractContextManager[object]],
) -> None:
    """Before Linux 5.14 they learn from the self-test of the loader, in its cgroup or outside, and from no other."""
    pins, own = Pins(instance), home.own_namespace()
    monkeypatch.setattr(home, "own_namespace", lambda: None)
    with place(cgroup):
        loader.load(pins, cgroup, loader_of_tests())
    learned = home_of(pins)
    assert learned
    assert own in {learned, None}
    with socket_maker(cgroup, abroad) as client:
        for vip in own_servers.virtual_servers(instance):
            target = format_address(vip.address), vip.port
            (sock,) = client.make(target, udp=True)
            assert outcome(sock, target) == refusal()
    assert home_of(pins) == learned
    assert counts(pins, cgroup)
    assert not counts(pins, cgroup, abroad)
