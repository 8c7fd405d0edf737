"""Passive health in the kernel, without a sidecar: which server is ejected, when, for how long, and at what cost."""

from __future__ import annotations

import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import elements, structs
from clb_discovery.model.servers import Algorithm, PassiveHealth
from tests.support.moody import MoodyServer, moody_servers
from tests.support.pace import effort
from tests.support.plane import HOST, NO_TRACKING, VIP4, VIP6, Plane, real, target_of, virtual_server
from tests.support.process import wait_until
from tests.support.run_counts import counting_runs, run_counts
from tests.support.sockets import RESET

MS: Final = 1_000_000
"""Nanoseconds."""

FOR_GOOD: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000, silent_after_ms=60_000)


def names(servers: list[MoodyServer]) -> list[str]:
    """Return the pool of a virtual server."""
    return [server.name for server in servers]


def dial_until_ejected(plane: Plane, vip: str, count: int = 1) -> Counter[str]:
    """Connect until so many servers are ejected; return the results of the connects."""
    outcomes: Counter[str] = Counter()

    def are_ejected() -> bool:
        if len(plane.ejected(vip)) >= count:
            return True
        outcomes.update(plane.client.dial(target_of(vip)))
        return len(plane.ejected(vip)) >= count

    wait_until(are_ejected, f"{count} servers are ejected")
    return outcomes


def wait_for_probe(plane: Plane, vip: str, server: MoodyServer) -> None:
    """Wait until the ejection time of a server is over."""
    until = plane.servers(vip)[server.name].ejected_until
    wait_until(lambda: time.monotonic_ns() > until, f"{server.name} may be probed")


@pytest.mark.parametrize(
    ("vip", "algorithm"), [(VIP4, Algorithm.RANDOM), (VIP6, Algorithm.ROUND_ROBIN), (VIP4, Algorithm.LEAST_CONN)]
)
def test_dead_and_silent_servers_fail_three_connects_each(plane: Plane, vip: str, algorithm: Algorithm) -> None:
    """Of ten servers one resets and one is silent: each fails three connects, and from then on all succeed."""
    with moody_servers(*[HOST[vip]] * 10) as servers:
        dead, silent = servers[3], servers[7]
        plane.publish(virtual_server(vip, names(servers), algorithm, FOR_GOOD))
        dead.refuse()
        silent.fall_silent()
        outcomes = dial_until_ejected(plane, vip, 2)
        assert (outcomes["ECONNREFUSED"], outcomes["ETIMEDOUT"]) == (3, 3)
        assert set(outcomes) == {"ok", "ECONNREFUSED", "ETIMEDOUT"}
        assert plane.ejected(vip) == {dead.name, silent.name}
        assert plane.client.dial(target_of(vip), 200) == ["ok"] * 200
        found = plane.servers(vip)
    assert [(found[server.name].connects, found[server.name].failures) for server in (dead, silent)] == [(3, 3)] * 2
    assert sum(server.failures for server in found.values()) == 6


def test_one_call_reads_the_first_servers(plane: Plane) -> None:
    """The sidecar looks for ejections in the elements that `status` decodes, up to the end of the map."""
    with moody_servers(*[HOST[VIP4]] * 3) as servers:
        plane.publish(virtual_server(VIP4, names(servers), health=FOR_GOOD))
        servers[1].refuse()
        dial_until_ejected(plane, VIP4)
        with Maps(Pins(plane.instance)) as maps:
            installed = maps.read()
            decoded = maps.servers(installed)
            raw, size = maps.raw_servers(installed.top), structs.SERVER.size
            whole = maps.raw_servers(structs.MAX_SERVERS)
    assert len(raw) == installed.top * size
    for published in installed.virtual.values():
        for member, index in published.servers.items():
            assert elements.unpack_server(raw[index * size : (index + 1) * size]) == decoded[member]
    assert whole == raw + bytes((structs.MAX_SERVERS - installed.top) * size)


def test_only_failures_in_a_row_eject(plane: Plane, vip: str) -> None:
    """Only consecutive failures eject: a success resets the count."""
    with moody_servers(HOST[vip], HOST[vip]) as (moody, spare):
        plane.publish(virtual_server(vip, [moody.name, real(spare.name, 1, 1)], health=FOR_GOOD))
        for _ in range(3):
            moody.refuse()
            assert plane.client.dial(target_of(vip), 2) == ["ECONNREFUSED"] * 2
            moody.accept()
            assert plane.client.dial(target_of(vip)) == ["ok"]
        assert plane.ejected(vip) == set()
        found = plane.servers(vip)[moody.name]
        assert (found.connects, found.failures, found.in_row) == (9, 6, 0)
        moody.refuse()
        assert plane.client.dial(target_of(vip), 5) == ["ECONNREFUSED"] * 3 + ["ok"] * 2
        assert plane.ejected(vip) == {moody.name}


def test_thresholds_are_each_virtual_servers_own(plane: Plane, vip: str) -> None:
    """Two virtual servers with the same dead server each eject it after their own number of failures."""
    other = vip.replace(":80", ":81")
    with moody_servers(HOST[vip], HOST[vip]) as (dead, spare):
        pool = [real(dead.name), real(spare.name, 1, 1)]
        strict, patient = replace(FOR_GOOD, eject_after=1), PassiveHealth(eject_after=5, eject_first_ms=2_000)
        plane.publish(virtual_server(vip, pool, health=strict), virtual_server(other, pool, health=patient))
        dead.refuse()
        assert plane.client.dial(target_of(vip), 8) == ["ECONNREFUSED"] + ["ok"] * 7
        assert plane.client.dial(target_of(other), 8) == ["ECONNREFUSED"] * 5 + ["ok"] * 3
        until = {name: plane.servers(name)[dead.name].ejected_until for name in (vip, other)}
    now = time.monotonic_ns()
    assert until[other] - now < 2_000 * MS < 3_500_000 * MS < until[vip] - now


def fail_once(plane: Plane, vip: str, server: MoodyServer) -> range:
    """Connect until the server is ejected once more; return the length of the ejection, in nanoseconds."""
    before = plane.servers(vip)[server.name].ejections
    found: list[range] = []

    def is_ejected_again() -> bool:
        earliest = time.monotonic_ns()
        plane.client.dial(target_of(vip))
        latest, state = time.monotonic_ns(), plane.servers(vip)[server.name]
        found.append(range(state.ejected_until - latest, state.ejected_until - earliest + 1))
        return state.ejections != before and not state.probing

    wait_until(is_ejected_again, "it is ejected again")
    return found[-1]


def test_ejection_takes_longer_each_time(plane: Plane, vip: str) -> None:
    """The time doubles up to its maximum, continues there after a short recovery, and is reset after a long one."""
    with moody_servers(HOST[vip], HOST[vip]) as (moody, spare):
        health = PassiveHealth(
            eject_after=1, eject_first_ms=250, eject_most_ms=1_000
        )  # a busy machine would recover in less
        plane.publish(virtual_server(vip, [real(moody.name), real(spare.name, 1, 1)], health=health))
        moody.refuse()
        for duration in (250, 500, 1_000, 1_000):
            assert duration * MS in fail_once(plane, vip, moody)
        for pause, duration in ((0, 1_000), (1.1, 250)):
            moody.accept()
            wait_for_probe(plane, vip, moody)
            assert plane.client.dial(target_of(vip)) == ["ok"]
            assert plane.ejected(vip) == set()
            time.sleep(pause)
            moody.refuse()
            assert duration * MS in fail_once(plane, vip, moody)


def test_one_connect_probes_while_the_others_keep_away(plane: Plane, vip: str) -> None:
    """After its ejection time a server gets one connect as a probe; a success ends the ejection."""
    with moody_servers(*[HOST[vip]] * 3) as (moody, *others):
        health = PassiveHealth(eject_first_ms=1000, eject_most_ms=1000)
        plane.publish(virtual_server(vip, names([moody, *others]), health=health))
        moody.refuse()
        dial_until_ejected(plane, vip)
        moody.fall_silent()
        before = plane.servers(vip)[moody.name]
        plane.client.begun(target_of(vip), 30)
        assert plane.connects(vip)[moody.name] == before.connects
        wait_for_probe(plane, vip, moody)
        plane.client.begun(target_of(vip), 60)
        found = plane.servers(vip)[moody.name]
        assert (found.connects, found.probing) == (before.connects + 1, 1)
        assert found.ejected_until > before.ejected_until
        assert plane.ejected(vip) == {moody.name}

        wait_for_probe(plane, vip, moody)  # no answer yet, so the next probe is due
        plane.client.begun(target_of(vip), 60)
        assert plane.connects(vip)[moody.name] == before.connects + 2
        moody.accept()
        wait_until(lambda: not plane.ejected(vip), "a probe has been answered")
        plane.client.begun(target_of(vip), 60)
        assert plane.connects(vip)[moody.name] > before.connects + 4
        found = plane.servers(vip)[moody.name]
        assert (found.in_row, found.probing, found.ejections, found.times_ejected) == (0, 0, 1, 1)


def test_probe_without_an_outcome_is_repeated_ever_more_rarely(plane: Plane, vip: str) -> None:
    """Each one costs an application its patience, so the time until the next one doubles up to the maximum."""
    with moody_servers(HOST[vip], HOST[vip]) as (moody, spare):
        health = replace(FOR_GOOD, eject_after=1, eject_first_ms=250, eject_most_ms=1_000, connect_timeout_ms=120_000)
        plane.publish(virtual_server(vip, [real(moody.name), real(spare.name, 1, 1)], health=health))
        moody.refuse()
        dial_until_ejected(plane, vip)
        moody.fall_silent()
        for probes, duration in enumerate((250, 500, 1_000, 1_000), 1):
            wait_for_probe(plane, vip, moody)
            earliest = time.monotonic_ns()
            plane.client.begun(target_of(vip))
            latest, found = time.monotonic_ns(), plane.servers(vip)[moody.name]
            assert (found.probing, found.ejections) == (probes, 1)
            assert duration * MS in range(found.ejected_until - latest, found.ejected_until - earliest + 1)
        moody.accept()
        wait_until(lambda: not plane.ejected(vip), "the kernel has repeated a probe")
        assert plane.servers(vip)[moody.name].probing == 0


def test_probe_that_fails_ejects_for_longer(plane: Plane, vip: str) -> None:
    """One application sees the failure of a probe, and the server is ejected for twice as long."""
    with moody_servers(*[HOST[vip]] * 3) as servers:
        health = PassiveHealth(eject_first_ms=500, eject_most_ms=60_000)
        plane.publish(virtual_server(vip, names(servers), health=health))
        servers[0].refuse()
        dial_until_ejected(plane, vip)
        wait_for_probe(plane, vip, servers[0])
        assert Counter(plane.client.dial(target_of(vip), 60)) == {"ok": 59, "ECONNREFUSED": 1}
        found = plane.servers(vip)[servers[0].name]
    assert (found.ejections, found.times_ejected, found.probing) == (2, 2, 0)


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 1), (3, 1), (10, 5)])
def test_half_of_the_only_tier_stays(plane: Plane, vip: str, size: int, most: int) -> None:
    """If all servers fail and there is no other tier, at most half are ejected; a single server never is."""
    with moody_servers(*[HOST[vip]] * size) as servers:
        plane.publish(virtual_server(vip, names(servers), health=FOR_GOOD))
        for server in servers:
            server.refuse()
        for _ in range(20):
            assert plane.client.dial(target_of(vip), 5 * size) == ["ECONNREFUSED"] * 5 * size
            assert len(plane.ejected(vip)) <= most
        assert len(plane.ejected(vip)) == most


def test_half_of_the_only_tier_stays_when_several_fail_at_once(plane: Plane, vip: str) -> None:
    """Failures on several CPUs at the same moment, which do not see each other, still eject at most half."""
    with moody_servers(*[HOST[vip]] * 10) as servers, ThreadPoolExecutor(4) as threads:
        for server in servers:
            server.refuse()
        for _ in range(20):
            plane.clear()
            plane.publish(virtual_server(vip, names(servers), health=replace(FOR_GOOD, eject_after=1)))
            sockets = plane.client.make(target_of(vip), 80)
            for sock in sockets:
                sock.setblocking(False)
            list(threads.map(lambda sock: sock.connect_ex(target_of(vip)), sockets))
            assert len(plane.ejected(vip)) == 5


def test_whole_tier_is_ejected_where_another_takes_over(plane: Plane, vip: str) -> None:
    """All servers of a tier are ejected if there is a next tier, and half of the last one if it fails too."""
    with moody_servers(*[HOST[vip]] * 8) as servers:
        pool = [real(server.name, 1, index // 4) for index, server in enumerate(servers)]
        plane.publish(virtual_server(vip, pool, health=FOR_GOOD))
        for server in servers[:4]:
            server.refuse()
        assert dial_until_ejected(plane, vip, 4) == {"ECONNREFUSED": 12}
        assert plane.ejected(vip) == set(names(servers[:4]))
        assert plane.client.dial(target_of(vip), 50) == ["ok"] * 50
        for server in servers[4:]:
            server.refuse()
        assert set(plane.client.dial(target_of(vip), 100)) == {"ECONNREFUSED"}
        assert len(plane.ejected(vip) & set(names(servers[4:]))) == 2


def test_ejection_survives_republication(plane: Plane, vip: str) -> None:
    """An ejected server stays ejected, with its counters, when weights change or other servers come and go."""
    with moody_servers(*[HOST[vip]] * 4) as (dead, *others):
        plane.publish(virtual_server(vip, names([dead, *others]), health=FOR_GOOD))
        dead.refuse()
        dial_until_ejected(plane, vip)
        before = plane.servers(vip)
        for pool in (
            [real(dead.name, 7), *(real(server.name, 2) for server in others)],
            names([dead, *others[1:]]),
            names([dead, *others]),
        ):
            plane.publish(virtual_server(vip, pool, Algorithm.ROUND_ROBIN, FOR_GOOD))
            assert plane.servers(vip)[dead.name] == before[dead.name]
            assert plane.servers(vip)[others[1].name] == before[others[1].name]
            assert plane.client.dial(target_of(vip), 50) == ["ok"] * 50
            before = plane.servers(vip)


def test_server_that_left_and_came_back_is_healthy(plane: Plane, vip: str) -> None:
    """Passive health forgets a server when discovery removes it."""
    with moody_servers(*[HOST[vip]] * 3) as (dead, *others):
        plane.publish(virtual_server(vip, names([dead, *others]), health=FOR_GOOD))
        dead.refuse()
        dial_until_ejected(plane, vip)
        plane.publish(virtual_server(vip, names(others), health=FOR_GOOD))
        plane.publish(virtual_server(vip, names([dead, *others]), health=FOR_GOOD))
        assert plane.ejected(vip) == set()
        assert dial_until_ejected(plane, vip)["ECONNREFUSED"] == 3


def test_application_that_gives_up_does_not_count(plane: Plane, vip: str) -> None:
    """A connect that the application closes before an answer does not count against the server."""
    with moody_servers(HOST[vip], HOST[vip]) as (silent, spare):
        plane.publish(virtual_server(vip, [silent.name, real(spare.name, 1, 1)], health=FOR_GOOD))
        silent.fall_silent()
        for sock in plane.client.begun(target_of(vip), 10):
            sock.close()
        for sock in plane.client.begun(target_of(vip), 10):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        found = plane.servers(vip)[silent.name]
    assert (found.connects, found.failures, found.in_row, found.ejected_until) == (20, 0, 0, 0)


def test_ejection_that_is_switched_off_leaves_no_server_out(plane: Plane, vip: str) -> None:
    """With eject_after 0 every server gets its share, including dead and previously ejected ones."""
    with moody_servers(*[HOST[vip]] * 4) as servers:
        plane.publish(virtual_server(vip, names(servers), health=FOR_GOOD))
        servers[0].refuse()
        dial_until_ejected(plane, vip)
        plane.publish(virtual_server(vip, names(servers), health=PassiveHealth(eject_after=0)))
        outcomes = Counter(plane.client.dial(target_of(vip), 400))
    assert 50 < outcomes["ECONNREFUSED"] < 150  # 100 on average, with a standard deviation of 9


def test_least_conn_probes_idle_servers_soon(plane: Plane, vip: str) -> None:
    """With least-conn a server is probed soon after its ejection time, because no server has fewer connections."""
    with moody_servers(*[HOST[vip]] * 10) as servers:
        health = PassiveHealth(eject_first_ms=300, eject_most_ms=300)
        plane.publish(virtual_server(vip, names(servers), Algorithm.LEAST_CONN, health))
        servers[0].refuse()
        dial_until_ejected(plane, vip)
        servers[0].accept()
        while_out = plane.client.connected(target_of(vip), 100)
        assert len(while_out) == 100
        wait_for_probe(plane, vip, servers[0])
        plane.client.connected(target_of(vip), 60)  # each chooses it with probability 1/5
        assert plane.ejected(vip) == set()


@pytest.mark.parametrize("health", [PassiveHealth(), NO_TRACKING], ids=["tracked", "untracked"])
def test_established_connection_runs_no_program(plane: Plane, vip: str, health: PassiveHealth) -> None:
    """After 100,000 requests on one connection every program has run exactly as often as before them."""
    with moody_servers(HOST[vip]) as (server,), counting_runs():
        plane.publish(virtual_server(vip, [server.name], health=health))
        (client,) = plane.client.connected(target_of(vip))
        peer = server.take()
        before = run_counts(plane.pins)
        for _ in range(effort(100_000, least=10_000)):
            client.send(b"PING")
            peer.recv(16)
            peer.send(b"PONG")
            client.recv(16)
        assert run_counts(plane.pins) == before
        assert before["clb_sock_ops"] > 0


def sock_ops_runs(plane: Plane, target: tuple[str, int]) -> int:
    """Return how often sock_ops runs from a connect to its close."""
    (client,) = plane.client.make(target)
    before = run_counts(plane.pins)["clb_sock_ops"]
    client.connect(target)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    return run_counts(plane.pins)["clb_sock_ops"] - before


def test_nobody_pays_for_what_is_switched_off(plane: Plane, vip: str) -> None:
    """Without passive health and counts sock_ops runs no more often for a VIP's connections than for others."""
    other = vip.replace(":80", ":81")
    with moody_servers(HOST[vip]) as (server,), counting_runs():
        plane.publish(virtual_server(vip, [server.name]), virtual_server(other, [server.name], health=PassiveHealth()))
        elsewhere = sock_ops_runs(plane, server.target)
        assert sock_ops_runs(plane, target_of(vip)) == elsewhere
        assert sock_ops_runs(plane, target_of(other)) > elsewhere


def test_sockets_that_are_not_ours_have_no_record(plane: Plane, vip: str) -> None:
    """Sock_ops sees connects to other addresses, stores nothing about them, and counts nothing."""
    with moody_servers(HOST[vip]) as (server,), counting_runs():
        plane.publish(virtual_server(vip, [server.name], health=PassiveHealth()))
        before = run_counts(plane.pins)["clb_sock_ops"]
        (foreign,) = plane.client.connected(server.target)
        assert run_counts(plane.pins)["clb_sock_ops"] > before
        assert not plane.has_record(foreign)
        assert plane.servers(vip)[server.name].connects == 0
        (ours,) = plane.client.connected(target_of(vip))
        assert plane.has_record(ours)
