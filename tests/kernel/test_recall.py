"""Servers that have recovered while they were out, when the server that takes their connects fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import pytest

from clb_discovery.layout.elements import Change, ChangeKind
from clb_discovery.model.servers import Algorithm, PassiveHealth
from tests.kernel.test_steering import fail, given_up, state_of
from tests.support.moody import MoodyServer, moody_servers
from tests.support.pace import patient
from tests.support.plane import HOST, Plane, default_plane, real, target_of, virtual_server
from tests.support.process import wait_until

_plane_of_module = default_plane

EJECTS: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000, silent_after_ms=1)
"""For an hour: whatever is back sooner was recalled."""
HOUR: Final = 3_600_000_000_000
"""Nanoseconds."""
PAUSE: Final = 1.0
"""Seconds between two recalls of a pool."""
TIERS: Final = pytest.mark.parametrize("tiers", [(0, 0), (0, 1), (1, 0)], ids=["one tier", "backup", "preferred"])
"""The priorities of a server that was restarted, and of the one that serves meanwhile."""


@pytest.mark.parametrize("algorithm", Algorithm)
@TIERS
def test_servers_that_restart_one_after_the_other(
    plane: Plane, vip: str, tiers: Sequence[int], algorithm: Algorithm
) -> None:
    """The first is still out when the second dies: without a sidecar, three failures later a connect probes it."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second):
        publish(plane, vip, [first, second], tiers, algorithm=algorithm)
        plane.mark(vip, [first.name])
        second.refuse()
        outcomes = plane.client.dial(target_of(vip), 60)
        assert outcomes[:3] == ["ECONNREFUSED"] * 3
        assert outcomes[30:] == ["ok"] * 30
        assert state_of(plane, vip, first).ejected_until == 0
        assert state_of(plane, vip, second).times_ejected == (0 if tiers == (0, 1) else 1)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("weights", [(1, 1), (1, 1000)], ids=["alike", "a thousandth"])
def test_one_that_no_scheduler_would_choose_is_recalled(
    plane: Plane, vip: str, weights: Sequence[int], algorithm: Algorithm
) -> None:
    """It has open connections, or next to no weight: a connect to the dead one is spent on it all the same."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second):
        pool = [real(one.name, weight) for one, weight in zip((first, second), weights, strict=True)]
        plane.publish(virtual_server(vip, pool[:1], algorithm, EJECTS))
        held = plane.client.connected(target_of(vip), 3)
        plane.publish(virtual_server(vip, pool, algorithm, EJECTS))
        plane.mark(vip, [first.name])
        second.refuse()
        outcomes = plane.client.dial(target_of(vip), 60)
        assert outcomes[:3] == ["ECONNREFUSED"] * 3
        assert outcomes[3:].count("ok") >= 56
        assert plane.ejected(vip) == {second.name}
        for one in held:
            one.close()


def test_one_that_its_check_keeps_out_is_not_needed(plane: Plane, vip: str) -> None:
    """Connects that were on their way fail, and eject it: it is out already, so the other one loses nothing."""
    health = replace(EJECTS, suspicion=False, checked=True)
    with moody_servers(HOST[vip], HOST[vip]) as (first, second), plane.heard() as changes:
        publish(plane, vip, [first, second], (0, 0), health=health, algorithm=Algorithm.ROUND_ROBIN)
        give_up = given_up(plane, vip, first, 0, 8)
        plane.steer(vip, {first.name: HOUR})
        give_up()
        assert plane.ejected(vip) == {first.name}
        index = plane.indexes(vip)[first.name]
        assert [(one.kind, one.server) for one in changes()] == [(ChangeKind.EJECTED, index)]


@pytest.mark.parametrize("size", [5, 9, 30])
def test_any_of_many_is_recalled(plane: Plane, vip: str, size: int) -> None:
    """Half of the tier is out, in whichever row, and one of it comes back."""
    with moody_servers(*[HOST[vip]] * size) as servers:
        names = [server.name for server in servers]
        plane.publish(virtual_server(vip, names, health=EJECTS))
        out = set(names[: size // 2])
        plane.mark(vip, out)
        servers[-1].refuse()
        while not out - plane.ejected(vip):
            assert plane.connects(vip)[names[-1]] < 1000
            plane.client.dial(target_of(vip), 10)


def test_few_connects_are_spent_on_recalls(plane: Plane, vip: str) -> None:
    """Nobody has recovered: one a second, and after 3, 6, 12 failures and so on."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second):
        publish(plane, vip, [first, second], (0, 1))
        plane.mark(vip, [first.name])
        first.refuse()
        second.refuse()
        before, began = plane.connects(vip), time.monotonic()
        while plane.connects(vip)[second.name] < before[second.name] + 2000 or time.monotonic() - began < 2 * PAUSE:
            assert set(plane.client.dial(target_of(vip), 100)) == {"ECONNREFUSED"}
        recalled = plane.connects(vip)[first.name] - before[first.name]
        doublings = math.log2(plane.connects(vip)[second.name] / EJECTS.eject_after)
        assert doublings <= recalled <= doublings + 1 + (time.monotonic() - began) / PAUSE


def test_a_failure_that_ejects_nobody_recalls_nobody(plane: Plane, vip: str) -> None:
    """One lost SYN of the server in service is no reason to send a connect to a dead one."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second):
        publish(plane, vip, [first, second], (0, 1))
        plane.mark(vip, [first.name])
        before = plane.connects(vip)[first.name]
        given_up(plane, vip, second, 2)
        second.accept()
        assert plane.client.dial(target_of(vip), 20) == ["ok"] * 20
        assert plane.connects(vip)[first.name] == before


@pytest.mark.parametrize("waits", [False, True])
def test_sidecar_is_told_and_probes_first(plane: Plane, vip: str, *, waits: bool) -> None:
    """At the first failure it hears of the need, and at most once a second of what follows."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second), plane.heard() as changes:
        publish(plane, vip, [first, second], (0, 1), health=replace(EJECTS, connect_timeout_ms=20_000))
        plane.mark(vip, [first.name])
        plane.steer(vip, {first.name: HOUR})
        if waits:
            give_up = given_up(plane, vip, second, 0, 5)
            told = told_within(changes, 5)
            give_up()
        else:
            fail(plane, vip, second)
            fail(plane, vip, second)
            told = changes()
        index = plane.indexes(vip)[second.name]
        assert [(one.kind, one.server, one.in_row, one.cause) for one in told] == [
            (ChangeKind.NEEDED, index, 0, 3) if waits else (ChangeKind.NEEDED, index, 1, 1)
        ]
        assert plane.connects(vip)[first.name] == 0


def test_third_failure_does_not_wait_for_the_sidecar(plane: Plane, vip: str) -> None:
    """The sidecar has found the server dead a moment ago; but a connect there costs nothing, where others fail."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second), plane.heard():
        publish(plane, vip, [first, second], (0, 1))
        plane.mark(vip, [first.name])
        plane.steer(vip, {first.name: HOUR})
        second.refuse()
        assert plane.client.dial(target_of(vip), 20) == ["ECONNREFUSED"] * 3 + ["ok"] * 17


def test_suspect_is_recalled_too(plane: Plane, vip: str) -> None:
    """It was back before its second was over, and the sidecar could not tell: it takes connects, as after that."""
    with moody_servers(HOST[vip], HOST[vip]) as (first, second), plane.heard():
        publish(plane, vip, [first, second], (0, 1))
        plane.mark(vip, [], suspect={first.name: time.monotonic_ns() + HOUR})
        second.refuse()
        assert plane.client.dial(target_of(vip), 20) == ["ECONNREFUSED"] * 3 + ["ok"] * 17
        assert state_of(plane, vip, first).ejected_until == 0


def test_one_whose_probes_had_no_outcome_is_recalled(plane: Plane, vip: str) -> None:
    """Applications gave them up at once, so the next one would be long in coming."""
    health = replace(EJECTS, eject_first_ms=20, silent_after_ms=60_000)
    with moody_servers(HOST[vip], HOST[vip]) as (first, second):
        publish(plane, vip, [first, second], (0, 1), health=health)
        first.refuse()
        assert plane.client.dial(target_of(vip), 3) == ["ECONNREFUSED"] * 3
        first.fall_silent()

        def was_probed_often() -> bool:
            for sock in plane.client.begun(target_of(vip)):
                sock.close()
            return state_of(plane, vip, first).probing >= 8

        wait_until(was_probed_often, "many probes have had no outcome")
        next_one = state_of(plane, vip, first).ejected_until
        first.accept()
        second.refuse()
        assert plane.client.dial(target_of(vip), 20) == ["ECONNREFUSED"] * 3 + ["ok"] * 17
        assert time.monotonic_ns() < next_one


def told_within(changes: Callable[[], list[Change]], seconds: float) -> list[Change]:
    """Return the first reports."""
    found: list[Change] = []
    deadline = time.monotonic() + patient(seconds)
    while not found and time.monotonic() < deadline:
        found = changes()
    return found


def publish(
    plane: Plane,
    vip: str,
    servers: Sequence[MoodyServer],
    tiers: Sequence[int],
    *,
    health: PassiveHealth = EJECTS,
    algorithm: Algorithm = Algorithm.RANDOM,
) -> None:
    """Publish a pool with these priorities."""
    pool = [real(server.name, 1, tier) for server, tier in zip(servers, tiers, strict=True)]
    plane.publish(virtual_server(vip, pool, algorithm, health))
