"""The program that learns how TCP connects end comes and goes, and nothing is lost by it."""

from __future__ import annotations

import errno
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath import bpf
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import OUTCOMES
from clb_discovery.datapath.plane import OwnPlane
from clb_discovery.model import own_servers
from clb_discovery.model.servers import PassiveHealth, VirtualServer
from clb_discovery.publication.plan import plan
from clb_discovery.sidecar.outcomes import Outcomes
from tests.support.clients import connecting, wait_for_records
from tests.support.moody import moody_servers
from tests.support.pace import effort
from tests.support.plane import NO_TRACKING, Plane, target_of, virtual_server
from tests.support.process import free_port, wait_until
from tests.support.run_counts import counting_runs, run_counts
from tests.support.tracing import outcomes, tracing

VIP: Final = "10.64.0.1"
DEAD: Final = "10.64.0.2"
EJECTS: Final = PassiveHealth(active=False)
COUNTS: Final = PassiveHealth(eject_after=0)
ROUNDS: Final = 20


@pytest.fixture(autouse=True)
def _detached(plane: Plane) -> Iterator[None]:
    """Begin without the program, and end with it, as it is loaded."""
    loader.leave_outcomes(plane.pins)
    yield
    loader.follow_outcomes(plane.pins, plane.cgroup)


def test_without_it_connects_are_balanced_and_run_nothing_of_it(plane: Plane, vip: str) -> None:
    """Connects to a VIP and elsewhere work, have the VIP as their peer, and do not run it."""
    host = {"10.64.0.1:80": "127.0.0.1"}.get(vip, "::1")
    with moody_servers(host) as (server,), counting_runs():
        plane.publish(virtual_server(vip, [server.name]))
        wait_until(lambda: no_runs(plane, server.target), "the kernel has detached it")
        before = run_counts(plane.pins)
        ours = plane.client.connected(target_of(vip), 5)
        plane.client.connected(server.target, 5)
        assert {client.getpeername()[:2] for client in ours} == {target_of(vip)}
        after = run_counts(plane.pins)
        assert after[OUTCOMES] == before[OUTCOMES]
        assert plane.connects(vip) == {server.name: 5}


def test_a_round_opens_its_link_once(
    plane: Plane, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar looks every two seconds: at the links that balance, and once at this one while something needs it."""
    following, opened, look = OwnPlane(plane.pins, plane.cgroup, Loader.AUTO), list[str](), bpf.open_pin
    outcomes_ = Outcomes(following)
    request.addfinalizer(following.let_go)
    following.bring_up()

    def noted(path: Path, *, read_only: bool = False) -> int:
        opened.append(path.name)
        return look(path, read_only=read_only)

    monkeypatch.setattr(bpf, "open_pin", noted)
    for needs, times in ((EJECTS, 1), (NO_TRACKING, 0)):
        with Maps(plane.pins) as maps:
            plane.publish(virtual_server(f"{VIP}:80", ["127.0.0.1:1"], health=needs))
            outcomes_.look(maps.read(), maps.servers)
            opened.clear()
            assert not following.is_lost()
            outcomes_.look(maps.read(), maps.servers)
        assert opened.count(plane.pins.link(OUTCOMES).name) == times
        assert plane.pins.link("clb_connect4").name in opened


def no_runs(plane: Plane, target: tuple[str, int]) -> bool:
    """Tell whether a connect to this target does not run it."""
    before = run_counts(plane.pins)[OUTCOMES]
    plane.client.connected(target)
    return run_counts(plane.pins)[OUTCOMES] == before


def test_trace_sees_outcomes(plane: Plane, tmp_path: Path) -> None:
    """A trace attaches it before it listens, and detaches it at its end; earlier connects have no line."""
    output, target = tmp_path / "trace", target_of(f"{VIP}:80")
    with moody_servers("127.0.0.1", "127.0.0.1") as (alive, refuses), Maps(plane.pins) as maps:
        refuses.refuse()
        dead = f"{DEAD}:80"
        plane.publish(virtual_server(f"{VIP}:80", [alive.name]), virtual_server(dead, [refuses.name]))
        maps.listen_until(time.monotonic_ns() + 60 * 10**9)
        (earlier,) = plane.client.connected(target)  # as one of a trace that has ended: nothing follows it
        maps.listen_until(0)
        with tracing(plane.instance, output, "--json", end=signal.SIGTERM):
            assert plane.pins.link(OUTCOMES).exists()
            earlier.close()
            (later,) = plane.client.connected(target)
            later.close()
            assert plane.client.dial(target_of(dead)) == ["ECONNREFUSED"]
            wait_until(lambda: len(outcomes(output)) == 2, "both are reported")
        assert outcomes(output) == ["established", "failed"]
    assert not plane.pins.link(OUTCOMES).exists()


def test_nothing_is_lost_while_it_comes_and_goes(plane: Plane, tmp_path: Path) -> None:
    """Under connects in flight each failure counts while a service ejects, and no count of connections stays behind."""
    port, dead = free_port(), f"127.0.0.1:{free_port()}"
    following = Outcomes(OwnPlane(plane.pins, plane.cgroup, Loader.AUTO))

    def publish(failing: PassiveHealth, counting: PassiveHealth) -> None:
        servers = {DEAD: (dead, failing), VIP: (f"127.0.0.1:{port}", counting)}
        virtual = [virtual_server(f"{vip}:{port}", [name], health=health) for vip, (name, health) in servers.items()]
        apply(plane, following, virtual)

    publish(NO_TRACKING, NO_TRACKING)
    spans = []
    with connecting(plane.cgroup, port, tmp_path, DEAD, VIP, apart=True) as connects:
        for _ in range(effort(ROUNDS, least=5)):
            earliest = time.monotonic_ns()
            publish(EJECTS, COUNTS)
            first = time.monotonic_ns()
            time.sleep(0.1)
            last = time.monotonic_ns()
            publish(NO_TRACKING, NO_TRACKING)
            loader.leave_outcomes(plane.pins)
            spans.append((earliest, first, last, time.monotonic_ns()))
            time.sleep(0.05)
        wait_for_records(tmp_path)
    counted = plane.servers(f"{DEAD}:{port}")[dead].failures
    refused = [one for one in connects if one.error == errno.ECONNREFUSED]
    certain = sum(any(first <= one.start and one.end <= last for _, first, last, _ in spans) for one in refused)
    possible = sum(any(one.start <= end and one.end >= begin for begin, _, _, end in spans) for one in refused)
    print(f"\n{len(spans)} times: {certain} failures for certain, {counted} counted, {possible} possible")
    assert 0 < certain <= counted <= possible
    assert {one.error for one in connects if one.error != errno.ECONNREFUSED} == {0}
    wait_until(lambda: plane.active(f"{VIP}:{port}") == {f"127.0.0.1:{port}": 0}, "no connection is counted")


def apply(plane: Plane, following: Outcomes, virtual: list[VirtualServer]) -> None:
    """Publish as the sidecar does."""
    wanted = own_servers.virtual_servers(plane.instance) | {server.vip: server for server in virtual}
    with Instance(plane.instance).locked(), Maps(plane.pins) as maps:
        found = plan(maps.read(), wanted, complete=True)
        following.prepare(found)
        assert following.objection is None
        maps.apply(found.steps)


def test_attached_twice_counts_once(plane: Plane) -> None:
    """While a link that was removed is still in effect beside the next one, each failure and connection counts once."""
    vip, dead = f"{VIP}:80", f"{DEAD}:80"
    with moody_servers("127.0.0.1", "127.0.0.1") as (alive, refuses):
        refuses.refuse()
        plane.publish(virtual_server(vip, [alive.name], health=COUNTS), virtual_server(dead, [refuses.name]))
        plane.publish(
            virtual_server(vip, [alive.name], health=COUNTS), virtual_server(dead, [refuses.name], health=EJECTS)
        )
        loader.follow_outcomes(plane.pins, plane.cgroup)
        link = plane.pins.link(OUTCOMES)
        aside = link.with_name("aside_link")
        link.rename(aside)
        try:
            loader.follow_outcomes(plane.pins, plane.cgroup)
            (client,) = plane.client.connected(target_of(vip))
            assert plane.active(vip) == {alive.name: 1}
            assert plane.client.dial(target_of(dead), 3) == ["ECONNREFUSED"] * 3
            assert plane.servers(dead)[refuses.name].failures == 3
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            client.close()
            wait_until(lambda: plane.active(vip) == {alive.name: 0}, "it is counted no longer")
        finally:
            aside.unlink()
