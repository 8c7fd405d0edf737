"""What programs make of the word of a sidecar, which tests write: servers kept out, brought back, and suspect."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Final

import pytest

from clb_discovery.layout.elements import NO_WORD, Change, ChangeKind, Server, unpack_steering
from clb_discovery.model.servers import Algorithm, PassiveHealth, RealServer
from tests.support.moody import MoodyServer, moody_servers
from tests.support.plane import HOST, VIP4, Plane, default_plane, real, target_of, virtual_server
from tests.support.process import wait_until

MS: Final = 1_000_000
HOUR: Final = 3_600_000 * MS
"""Nanoseconds."""
RECALLED: Final = 1
"""`ejected_until` of a server that takes connects again because another one was needed."""
UDP: Final = f"{VIP4}/udp"
TARGET: Final = target_of(UDP)

CHECKED: Final = PassiveHealth(eject_after=0, checked=True)
EJECTS: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000, silent_after_ms=1)
EVERY_SCHEDULER: Final = pytest.mark.parametrize(
    ("algorithm", "size"),
    [(algorithm, size) for algorithm in Algorithm for size in (2, 5, 20)],
)
"""In small and in large tiers, in one row and in several."""
_plane_of_module = default_plane


def pool_of(size: int, *, tiers: int = 1) -> list[RealServer]:
    """Return a pool of servers that nobody listens to: datagrams to them are counted all the same."""
    return [real(f"127.1.0.{place}:9", 1, (place - 1) * tiers // size) for place in range(1, size + 1)]


def names(pool: Sequence[RealServer]) -> list[str]:
    """Return the names of real servers."""
    return [f"127.1.0.{server.address[-1]}:{server.port}" for server in pool]


def sent(plane: Plane, times: int = 100) -> set[str]:
    """Send a datagram from so many sockets; return the servers that were chosen."""
    before = plane.connects(UDP)
    for sock in plane.client.make(TARGET, times, udp=True):
        sock.sendto(b"", TARGET)
        sock.close()
    return {name for name, count in plane.connects(UDP).items() if count > before[name]}


@EVERY_SCHEDULER
def test_steered_server_is_out_until_the_word_changes(plane: Plane, algorithm: Algorithm, size: int) -> None:
    """A server that the sidecar keeps out gets nothing, and its share at once when the sidecar has reached it."""
    pool = pool_of(size)
    out, *others = names(pool)
    plane.publish(virtual_server(UDP, pool, algorithm, CHECKED))
    assert sent(plane, 20 * size) == {out, *others}
    plane.steer(UDP, {out: HOUR})
    assert sent(plane, 20 * size) == set(others)
    plane.steer(UDP, {out: 0})
    assert sent(plane, 20 * size) == {out, *others}


@EVERY_SCHEDULER
def test_word_brings_an_ejected_server_back(plane: Plane, algorithm: Algorithm, size: int) -> None:
    """An ejection ends when the sidecar has reached the server, in every scheduler; one that goes on does not."""
    pool = pool_of(size)
    back, *others = names(pool)
    plane.publish(virtual_server(UDP, pool, algorithm, EJECTS))
    plane.mark(UDP, [back])
    assert sent(plane, 20 * size) == set(others)
    plane.steer(UDP, {back: HOUR})
    assert sent(plane, 20 * size) == set(others)
    decided = plane.steer(UDP, {back: 0})
    assert sent(plane, 20 * size) == {back, *others}
    found = plane.servers(UDP)[back]
    assert (found.ejected_until, found.changed_at) == (0, decided)


@EVERY_SCHEDULER
def test_lease_of_an_ejected_server_ends_with_one_probe(plane: Plane, algorithm: Algorithm, size: int) -> None:
    """If the sidecar says no more, one connect probes the server when the lease is over; the others keep away."""
    pool = pool_of(size)
    out, *others = names(pool)
    plane.publish(virtual_server(UDP, pool, algorithm, EJECTS))
    plane.mark(UDP, [out])
    decided = plane.steer(UDP, {out: 300 * MS})
    time.sleep(0.31)
    assert sent(plane, 20 * size) == {out, *others}
    found = plane.servers(UDP)[out]
    assert (found.connects, found.probing, found.changed_at) == (1, 1, decided)
    assert sent(plane, 20 * size) == set(others)


def test_lease_of_a_healthy_server_just_ends(plane: Plane) -> None:
    """A server that was never ejected takes connects when the lease is over: a stopped sidecar holds nobody out."""
    pool = pool_of(4)
    plane.publish(virtual_server(UDP, pool, health=replace(EJECTS, checked=True)))
    plane.steer(UDP, dict.fromkeys(names(pool)[:3], HOUR))
    assert sent(plane) == set(names(pool)[3:])
    plane.steer(UDP, dict.fromkeys(names(pool)[:3], 10 * MS))
    time.sleep(0.02)
    assert sent(plane) == set(names(pool))
    assert not any(server.probing for server in plane.servers(UDP).values())


def test_word_about_a_healthy_server_needs_a_steered_pool(plane: Plane) -> None:
    """Without checks the sidecar's word counts only for servers that the programs have put out."""
    pool = pool_of(4)
    plane.publish(virtual_server(UDP, pool, health=EJECTS))
    plane.steer(UDP, {names(pool)[0]: HOUR})
    assert sent(plane) == set(names(pool))
    plane.publish(virtual_server(UDP, pool, health=replace(EJECTS, checked=True)))
    assert sent(plane) == set(names(pool)[1:])


def test_ejection_that_is_switched_off_leaves_the_word_alone(plane: Plane) -> None:
    """Where nothing ejects, a former ejection ends, and what the sidecar's checks say counts."""
    pool = pool_of(4)
    ejected, out, *others = names(pool)
    plane.publish(virtual_server(UDP, pool, health=CHECKED))
    plane.mark(UDP, [ejected])
    plane.steer(UDP, {out: HOUR})
    assert sent(plane) == {ejected, *others}
    assert plane.ejected(UDP) == set()


def test_next_tier_takes_over_from_one_that_is_kept_out(plane: Plane) -> None:
    """If all servers of a tier are kept out the next one serves, until one of them is back."""
    pool = pool_of(20, tiers=2)
    first, second = names(pool)[:10], names(pool)[10:]
    plane.publish(virtual_server(UDP, pool, health=CHECKED))
    plane.steer(UDP, dict.fromkeys(first, HOUR))
    assert sent(plane, 300) == set(second)
    plane.steer(UDP, {first[4]: 0})
    assert sent(plane) == {first[4]}


def test_attempt_is_better_than_a_refusal(plane: Plane) -> None:
    """If every server is kept out, connects go to any of them, of all tiers: one may have recovered."""
    pool = pool_of(20, tiers=2)
    plane.publish(virtual_server(UDP, pool, health=CHECKED))
    plane.steer(UDP, dict.fromkeys(names(pool), HOUR))
    assert sent(plane, 400) == set(names(pool))


def test_unconnected_socket_leaves_a_server_that_is_kept_out(plane: Plane) -> None:
    """A UDP socket that sends without a pause stays with its server until that is kept out."""
    pool = pool_of(4)
    plane.publish(virtual_server(UDP, pool, health=CHECKED))
    (sock,) = plane.client.make(TARGET, udp=True)
    for _ in range(20):
        sock.sendto(b"", TARGET)
    ((first, _),) = ((name, count) for name, count in plane.connects(UDP).items() if count)
    plane.steer(UDP, {first: HOUR})
    for _ in range(20):
        sock.sendto(b"", TARGET)
    used = {name for name, count in plane.connects(UDP).items() if count}
    assert len(used) == 2
    assert first in used


def test_word_about_a_removed_server_is_forgotten(plane: Plane) -> None:
    """The next server with its index begins without one."""
    pool = pool_of(2)
    plane.publish(virtual_server(UDP, pool, health=CHECKED))
    index = plane.indexes(UDP)[names(pool)[0]]
    plane.steer(UDP, {names(pool)[0]: HOUR})
    plane.publish(virtual_server(UDP, pool[1:], health=CHECKED))
    assert plane.steering(index) == unpack_steering(NO_WORD)


# Suspicion: over TCP, with servers that fail


def kinds(changes: Sequence[Change]) -> list[ChangeKind]:
    """Return what has happened, in order."""
    return [ChangeKind(change.kind) for change in changes]


def fail(plane: Plane, vip: str, server: MoodyServer, times: int = 1) -> None:
    """Connect until so many connects to a server that refuses have failed."""
    with suppress(OSError):  # it refuses already
        server.refuse()
    before = plane.servers(vip)[server.name].failures

    def have_failed() -> bool:
        plane.client.dial(target_of(vip))
        return plane.servers(vip)[server.name].failures == before + times

    wait_until(have_failed, "its connects fail")


def sleep_until(moment: int) -> None:
    """Sleep until this moment in nanoseconds of CLOCK_MONOTONIC."""
    time.sleep(max(0, moment - time.monotonic_ns()) / 1e9)


def published(plane: Plane, vip: str, servers: Sequence[MoodyServer], health: PassiveHealth = EJECTS) -> None:
    """Publish a pool whose first server is preferred, so that it gets every connect while it is in service."""
    pool = [real(server.name, 1, min(place, 1)) for place, server in enumerate(servers)]
    plane.publish(virtual_server(vip, pool, health=health))


def given_up(plane: Plane, vip: str, server: MoodyServer, failures: int, on_the_way: int = 0) -> Callable[[], None]:
    """Begin connects to a silent server and give so many of them up; return a function that gives the rest up."""
    server.fall_silent()
    begun = plane.client.begun(target_of(vip), failures + on_the_way)
    time.sleep(0.05)
    for sock in begun[:failures]:
        sock.close()

    def rest() -> None:
        for sock in begun[failures:]:
            sock.close()

    return rest


def state_of(plane: Plane, vip: str, server: MoodyServer) -> Server:
    """Return the kernel's counters and health of a server."""
    return plane.servers(vip)[server.name]


def test_first_failure_makes_a_server_suspect(plane: Plane, vip: str) -> None:
    """While the sidecar listens, one failed connect is enough: the others go elsewhere, and the sidecar is told."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        fail(plane, vip, servers[0])
        found = state_of(plane, vip, servers[0])
        outcomes = plane.client.dial(target_of(vip), 20)
        if time.monotonic_ns() < found.ejected_until:  # the machine is not too busy
            assert outcomes == ["ok"] * 20
        change, *_ = changes()
    assert (found.suspect, found.failures, found.in_row) == (1, 1, 1)
    assert (found.times_ejected, found.ejections, found.probing) == (0, 0, 0)
    assert found.ejected_until == found.changed_at + 1_000 * MS
    index = plane.indexes(vip)[servers[0].name]
    assert change == Change(found.changed_at, index, found.began, ChangeKind.SUSPECT, 1, found.cause)
    assert found.cause == 1


@pytest.mark.parametrize("suspicion", [False, True])
def test_without_a_listener_three_failures_eject(plane: Plane, vip: str, *, suspicion: bool) -> None:
    """Nobody is suspect where suspicion is off, or where no sidecar lives, also after one has died."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard(3600 if not suspicion else 0.01) as changes:
        time.sleep(0.02)
        published(plane, vip, servers, replace(EJECTS, suspicion=suspicion))
        servers[0].refuse()
        assert plane.client.dial(target_of(vip), 6) == ["ECONNREFUSED"] * 3 + ["ok"] * 3
        found = state_of(plane, vip, servers[0])
        assert kinds(changes()) == ([] if suspicion else [ChangeKind.EJECTED])
    assert (found.suspect, found.times_ejected) == (0, 1)


def test_suspicion_without_a_word_ends_after_a_second(plane: Plane, vip: str) -> None:
    """The server takes connects again, and failures are counted as before: the third one in a row ejects it."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        for failures in (1, 2, 3):
            fail(plane, vip, servers[0])
            found = state_of(plane, vip, servers[0])
            assert (found.in_row, found.suspect) == (failures, failures < 3)
            sleep_until(found.changed_at + 1_010 * MS)
        assert found.times_ejected == 1
        assert kinds(changes()) == [ChangeKind.SUSPECT, ChangeKind.SUSPECT, ChangeKind.EJECTED]


@pytest.mark.parametrize("is_up", [True, False])
def test_word_after_the_time_of_a_suspicion_still_counts(plane: Plane, vip: str, *, is_up: bool) -> None:
    """A busy sidecar comes late, when connects go to the server again: its word decides nevertheless."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        given_up(plane, vip, servers[0], 1)
        sleep_until(state_of(plane, vip, servers[0]).ejected_until)
        before = plane.connects(vip)[servers[0].name]
        begun = plane.client.begun(target_of(vip), 2)
        assert plane.connects(vip)[servers[0].name] == before + 2
        plane.steer(vip, {servers[0].name: 0 if is_up else HOUR})
        if is_up:
            servers[0].accept()
        assert plane.client.dial(target_of(vip), 10) == ["ok"] * 10
        assert plane.connects(vip)[servers[0].name] == before + (12 if is_up else 2)
        found = state_of(plane, vip, servers[0])
        assert (found.suspect, found.times_ejected) == (0, 0 if is_up else 1)
        assert kinds(changes()) == [ChangeKind.SUSPECT]
        for sock in begun:
            sock.close()


@EVERY_SCHEDULER
def test_suspicion_that_is_over_changes_no_share(plane: Plane, algorithm: Algorithm, size: int) -> None:
    """The server takes its share, and no connect that another server cannot take is kept for it."""
    size = max(3, size)
    suspect, out, *others = names(pool_of(size))
    plane.publish(virtual_server(UDP, pool_of(size), algorithm, EJECTS))
    plane.mark(UDP, [suspect, out], suspect={suspect: time.monotonic_ns()})
    assert sent(plane, 200 * size) == {suspect, *others}
    share = 200 * size / (size - 1)
    assert plane.connects(UDP)[suspect] < share + 5 * share**0.5  # it would be twice its share, or nearly
    found = plane.servers(UDP)[suspect]
    assert (found.suspect, found.probing) == (1, 0)


def test_waiting_connect_makes_a_server_suspect(plane: Plane, vip: str) -> None:
    """An application without a time-out goes on waiting; the others go elsewhere as soon as its first timer ends."""
    health = replace(EJECTS, connect_timeout_ms=20_000)
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers, health)
        began = time.monotonic_ns()
        give_up = given_up(plane, vip, servers[0], 0, 1)
        wait_until(lambda: state_of(plane, vip, servers[0]).suspect == 1, "its first timer has run out")
        found = state_of(plane, vip, servers[0])
        assert found.changed_at - began > 300 * MS
        assert (found.failures, found.in_row, found.times_ejected, found.cause) == (0, 0, 0, 3)
        if time.monotonic_ns() < found.ejected_until:
            assert plane.client.dial(target_of(vip)) == ["ok"]
        change, *_ = changes()
        assert (change.kind, change.time, change.in_row, change.cause) == (ChangeKind.SUSPECT, found.changed_at, 0, 3)
        give_up()


@pytest.mark.parametrize("why", ["nobody listens", "suspicion is off", "silence does not count", "it is too early"])
def test_waiting_connect_alone_changes_nothing(plane: Plane, vip: str, why: str) -> None:
    """Where nobody would probe the server, or silence does not count so soon, it may wait as long as it likes."""
    health = replace(EJECTS, connect_timeout_ms=1_000, suspicion=why != "suspicion is off")
    if why == "silence does not count":
        health = replace(health, silent_after_ms=0)
    elif why == "it is too early":
        health = replace(health, silent_after_ms=60_000)
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard(0.01 if why == "nobody listens" else 3600):
        time.sleep(0.02)
        published(plane, vip, servers, health)
        give_up = given_up(plane, vip, servers[0], 0, 1)
        wait_until(lambda: state_of(plane, vip, servers[0]).failures == 1, "its limit has come")
        found = state_of(plane, vip, servers[0])
        suspected = why in {"silence does not count", "it is too early"}  # by the failure itself
        assert (found.in_row, found.suspect, found.cause) == (1, int(suspected), 2 if suspected else 0)
        give_up()


def test_word_clears_a_suspicion_at_once(plane: Plane, vip: str) -> None:
    """If the sidecar reaches the server, it takes connects again, and its failures are forgotten."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        fail(plane, vip, servers[0])
        servers[0].accept()
        before = plane.connects(vip)[servers[0].name]
        decided = plane.steer(vip, {servers[0].name: 0})
        assert plane.client.dial(target_of(vip), 10) == ["ok"] * 10
        found = state_of(plane, vip, servers[0])
        assert kinds(changes()) == [ChangeKind.SUSPECT]
    assert found.connects == before + 10
    assert (found.suspect, found.in_row, found.ejected_until, found.changed_at) == (0, 0, 0, decided)


def test_word_turns_a_suspicion_into_an_ejection(plane: Plane, vip: str) -> None:
    """If the sidecar does not reach the server either, that is an ejection, and the lease decides how long."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        fail(plane, vip, servers[0])
        decided = plane.steer(vip, {servers[0].name: 2_000 * MS})
        assert plane.client.dial(target_of(vip), 10) == ["ok"] * 10
        found = state_of(plane, vip, servers[0])
        assert (found.suspect, found.times_ejected, found.ejections, found.in_row) == (0, 1, 1, 1)
        assert found.changed_at < decided < found.ejected_until
        servers[0].accept()
        sleep_until(found.changed_at + 1_010 * MS)
        connects = state_of(plane, vip, servers[0]).connects
        if time.monotonic_ns() < decided + 2_000 * MS:
            assert connects == found.connects
        sleep_until(decided + 2_010 * MS)
        assert plane.client.dial(target_of(vip), 10) == ["ok"] * 10
        assert state_of(plane, vip, servers[0]).ejected_until == 0
        assert kinds(changes()) == [ChangeKind.SUSPECT, ChangeKind.RETURNED]


def test_connects_on_their_way_can_still_eject_a_suspect(plane: Plane, vip: str) -> None:
    """Failures of connects that began before go on counting, and the word of the kernel is then the later one."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        rest = given_up(plane, vip, servers[0], 1, 4)
        assert state_of(plane, vip, servers[0]).suspect == 1
        rest()
        found = state_of(plane, vip, servers[0])
        assert (found.suspect, found.in_row, found.times_ejected, found.cause) == (0, 5, 1, 3)
        told = changes()
        assert kinds(told) == [ChangeKind.SUSPECT, ChangeKind.EJECTED]
        assert (told[1].time, told[1].in_row, told[1].cause) == (found.changed_at, 3, 3)


def test_failures_after_a_good_word_begin_anew(plane: Plane, vip: str) -> None:
    """Connects on their way that fail after the sidecar has reached the server make it suspect again."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        rest = given_up(plane, vip, servers[0], 1, 2)
        plane.steer(vip, {servers[0].name: 0})
        rest()
        found = state_of(plane, vip, servers[0])
        assert (found.suspect, found.in_row, found.times_ejected) == (1, 2, 0)
        assert kinds(changes()) == [ChangeKind.SUSPECT, ChangeKind.SUSPECT]


def test_success_on_its_way_clears_a_suspicion(plane: Plane, vip: str) -> None:
    """A connect that began before and is answered is as good as the word of the sidecar."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers)
        given_up(plane, vip, servers[0], 1, 1)
        assert state_of(plane, vip, servers[0]).suspect == 1
        servers[0].accept()
        wait_until(lambda: not state_of(plane, vip, servers[0]).ejected_until, "its SYN is answered")
        found = state_of(plane, vip, servers[0])
        assert (found.suspect, found.in_row) == (0, 0)
        assert kinds(changes()) == [ChangeKind.SUSPECT, ChangeKind.RETURNED]


def test_one_failure_ejects_where_one_is_enough(plane: Plane, vip: str) -> None:
    """With `--eject-after 1` nobody is suspect; a probe that fails is told, too, and one that succeeds."""
    health = PassiveHealth(eject_after=1, eject_first_ms=100, eject_most_ms=100)
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers, health)
        fail(plane, vip, servers[0])
        time.sleep(0.15)
        fail(plane, vip, servers[0])
        servers[0].accept()
        time.sleep(0.15)
        assert plane.client.dial(target_of(vip)) == ["ok"]
        told = changes()
    assert kinds(told) == [ChangeKind.EJECTED, ChangeKind.EJECTED, ChangeKind.RETURNED]
    assert [change.cause for change in told] == [1, 1, 0]


def test_only_a_later_word_counts(plane: Plane, vip: str) -> None:
    """What the sidecar decided before the kernel's last word changes nothing, whenever it is written."""
    with moody_servers(HOST[vip], HOST[vip]) as servers:
        published(plane, vip, servers, replace(EJECTS, checked=True))
        fail(plane, vip, servers[0], 3)
        servers[0].accept()
        ejected_at = state_of(plane, vip, servers[0]).changed_at
        before = plane.connects(vip)[servers[0].name]
        plane.steer(vip, {servers[0].name: 0}, ejected_at)
        assert plane.client.dial(target_of(vip), 10) == ["ok"] * 10
        assert plane.connects(vip)[servers[0].name] == before
        plane.steer(vip, {servers[0].name: 0}, ejected_at + 1)
        assert plane.client.dial(target_of(vip), 10) == ["ok"] * 10
        assert plane.connects(vip)[servers[0].name] == before + 10


def test_server_that_is_kept_out_is_not_suspected(plane: Plane, vip: str) -> None:
    """Failures of connects on their way to a server that the checks keep out do not shorten that."""
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard() as changes:
        published(plane, vip, servers, replace(EJECTS, checked=True))
        rest = given_up(plane, vip, servers[0], 0, 2)
        plane.steer(vip, {servers[0].name: HOUR})
        rest()
        found = state_of(plane, vip, servers[0])
        assert (found.in_row, found.suspect, found.ejected_until) == (2, 0, 0)
        assert changes() == []


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 1), (3, 1), (10, 5)])
def test_half_of_the_only_tier_is_never_suspect(plane: Plane, vip: str, size: int, most: int) -> None:
    """If all servers fail, at most half of the last tier is suspect or ejected."""
    with moody_servers(*[HOST[vip]] * size) as servers, plane.heard():
        plane.publish(virtual_server(vip, [server.name for server in servers], health=EJECTS))
        for server in servers:
            server.refuse()
        outcomes = Counter(plane.client.dial(target_of(vip), 10 * size))
        assert set(outcomes) == {"ECONNREFUSED"}
        assert len(plane.ejected(vip)) == most


def test_half_of_the_tier_stays_when_several_are_suspected_at_once(plane: Plane, vip: str) -> None:
    """Failures on several CPUs at the same moment, which do not see each other, are taken back."""
    with moody_servers(*[HOST[vip]] * 10) as servers, ThreadPoolExecutor(4) as threads, plane.heard():
        for server in servers:
            server.refuse()
        for _ in range(10):
            plane.clear()
            plane.publish(virtual_server(vip, [server.name for server in servers], health=EJECTS))
            sockets = plane.client.make(target_of(vip), 80)
            for sock in sockets:
                sock.setblocking(False)
            list(threads.map(lambda sock: sock.connect_ex(target_of(vip)), sockets))
            found = plane.servers(vip).values()
            assert sum(server.ejected_until > 0 for server in found) >= 4
            assert sum(server.ejected_until > RECALLED for server in found) <= 5
            assert all(server.ejected_until for server in found if server.suspect or server.probing)


def test_time_of_an_ejection_starts_anew_after_a_quiet_time(plane: Plane, vip: str) -> None:
    """A suspicion just before an ejection does not count as an earlier one in close succession."""
    health = PassiveHealth(eject_first_ms=100, eject_most_ms=400, silent_after_ms=1)
    with moody_servers(HOST[vip], HOST[vip]) as servers, plane.heard():
        published(plane, vip, servers, health)
        given_up(plane, vip, servers[0], 3)
        assert state_of(plane, vip, servers[0]).ejections == 1
        servers[0].accept()
        time.sleep(0.15)
        assert plane.client.dial(target_of(vip)) == ["ok"]
        given_up(plane, vip, servers[0], 3)
        assert state_of(plane, vip, servers[0]).ejections == 2
        servers[0].accept()
        time.sleep(0.25)
        assert plane.client.dial(target_of(vip)) == ["ok"]
        time.sleep(0.5)
        given_up(plane, vip, servers[0], 3)
        assert state_of(plane, vip, servers[0]).ejections == 1
