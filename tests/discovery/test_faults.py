"""The whole sidecar and the real kernel over a handful of random schedules of faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from tests.support.cgroups import made_cgroup
from tests.support.consul import ConsulAgent
from tests.support.dataplane import wipe
from tests.support.faulty_consul import Fault as ConsulFault
from tests.support.faulty_consul import FaultyConsul
from tests.support.faulty_dns import NAME, SLOW, FaultyDns
from tests.support.faulty_dns import Fault as DnsFault
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.schedules import LAST, Inject, Pass, Publish, Rules, Schedule, Servers, World, schedules
from tests.support.sidecar import sidecar, status

pytestmark = pytest.mark.discovery

VIP: Final = "10.64.0.1"
HOLD: Final = ("--hold", "1h")
"""No answer in these schedules removes enough to be held; the tests of the sources let that time pass."""
WITHIN: Final = patient(60.0)
"""Seconds that suffice for the longest backoff."""
LATE: Final = {ConsulFault.SILENT, ConsulFault.EMPTY_AS_EVER}
"""Faults that end with a time-out or the wait of a query, which take a minute here."""


def steps(faults: st.SearchStrategy[object]) -> st.SearchStrategy[Schedule]:
    """Return schedules in which no time passes."""
    return schedules(faults).map(lambda found: [step for step in found if not isinstance(step, Pass)])


def shown(servers: Servers) -> dict[str, int]:
    """Return a pool as `status` shows it."""
    return {str(server): server.weight for server in servers}


def applied(instance: str) -> tuple[dict[str, int], str]:
    """Return the pool in the kernel, and the state of the source."""
    document = status(instance)
    pools = [
        {f"{real['address']}:{real['port']}": real["weight"] for real in virtual["real_servers"]}
        for virtual in document["virtual_servers"]
    ]
    states = [source["state"] for source in document["sources"]]
    return (*pools, {})[0], (*states, "not yet")[0]


async def play(schedule: Schedule, world: World, options: list[str]) -> None:
    """Play a schedule in front of a sidecar; afterwards a change has to arrive."""
    instance, rules = f"test-{uuid4().hex[:8]}", Rules()
    end: Schedule = [Inject(None), Publish(frozenset({1, 2, 3, 4, 5, LAST}))]
    await apply(schedule[0], world)
    with made_cgroup() as cgroup, TemporaryDirectory() as folder:
        try:
            with sidecar(instance, cgroup, Path(folder), [*options, *HOLD], ready=False):
                for number, step in enumerate([*schedule, *end]):
                    before = rules.good
                    if number:
                        await apply(step, world)
                    rules.hear(world.says(rules.good), 0)
                    await settle(instance, before, rules, step)
        finally:
            wipe(instance)


async def apply(step: Publish | Inject | Pass, world: World) -> None:
    """Carry out a step."""
    if isinstance(step, Publish):
        await world.publish(step.numbers)
    elif isinstance(step, Inject):
        world.inject(step.faults)


async def settle(instance: str, before: Servers, rules: Rules, step: object) -> None:
    """Wait until kernel and status are as the rules require; until then the kernel keeps the last state."""
    deadline = time.monotonic() + WITHIN
    found = await asyncio.to_thread(applied, instance)
    while found != (shown(rules.good), rules.state):
        assert found[0] in (shown(before), shown(rules.good)), (step, found)
        assert time.monotonic() < deadline, (step, found, rules.good, rules.state)
        await asyncio.sleep(0.1)
        found = await asyncio.to_thread(applied, instance)


def play_a_few(faults: st.SearchStrategy[object], play_one: Callable[[Schedule], Coroutine[None, None, None]]) -> None:
    """Play random schedules; they are not shrunk, because that would take too long."""

    @settings(max_examples=5, phases=[Phase.generate])
    @given(steps(faults))
    def keeps_to_the_rules(schedule: Schedule) -> None:
        note(f"{schedule}")
        asyncio.run(play_one(schedule))

    keeps_to_the_rules()


def test_sidecar_keeps_to_the_rules_over_a_faulty_consul(tmp_path: Path) -> None:
    """Errors and wrong answers of Consul change nothing in the kernel; correct ones arrive, at the end for certain."""
    with ConsulAgent(tmp_path) as agent:

        async def play_one(schedule: Schedule) -> None:
            service = f"web-{uuid4().hex[:8]}"
            async with FaultyConsul(agent, service) as consul:
                await consul.publish(frozenset({1, 2, 3, 4}))
                await play(schedule, consul, ["--consul", consul.url, "--service", f"{service}={VIP}:80"])
                await consul.publish(frozenset())

        play_a_few(st.sampled_from([fault for fault in ConsulFault if fault not in LATE]), play_one)


def test_sidecar_keeps_to_the_rules_over_a_faulty_dns_server() -> None:
    """Errors and wrong answers of DNS change nothing in the kernel; correct ones arrive, at the end at the latest."""
    addresses = "\n".join(f"s{number} A 10.0.0.{number}" for number in range(1, 10))
    quick = st.sampled_from([fault for fault in DnsFault if fault not in SLOW])
    faults = st.dictionaries(st.just(NAME), st.sampled_from(DnsFault)) | st.dictionaries(
        st.integers(1, 5), quick, max_size=2
    )
    with KnotServer({"example": "", "other": addresses}) as knot:

        async def play_one(schedule: Schedule) -> None:
            async with FaultyDns(knot) as server:
                await server.publish(frozenset({1, 2, 3, 4}))
                options = ["--srv", f"{NAME}={VIP}:80", "--resolver", server.address]
                await play(schedule, server, [*options, "--min-ttl", "100ms", "--max-ttl", "100ms"])

        play_a_few(faults, play_one)
