"""The Consul source over random schedules of faults, played by a proxy in front of the real Consul."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import count
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clb_discovery.sources.consul.server import ConsulServer
from clb_discovery.sources.consul.source import BURST, RATE, ConsulSource
from clb_discovery.sources.follow import follow
from tests.support.consul import ConsulAgent
from tests.support.faulty_consul import Fault, FaultyConsul
from tests.support.pace import effort, patient
from tests.support.schedules import HOLD, Inject, Pass, Schedule, one_after_the_other, play, schedules

SERVICES: Final = count(1)
MOST: Final = 8
"""Maximum requests of one round, each repeated after a reset.

The query, the same without waiting, the same at the leader, and the rights of the token.
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Run an agent; each schedule has a service of its own."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running


def bound(seconds: float) -> float:
    """Return the maximum number of rounds in this time."""
    return BURST + RATE * seconds + 1


@pytest.mark.parametrize("most", [effort(4, 2), pytest.param(effort(100, 10), marks=pytest.mark.discovery)])
def test_consul_under_faults_keeps_to_the_rules(agent: ConsulAgent, most: int) -> None:
    """Through any faults in any order, errors change nothing, wrong answers are held, correct ones count.

    Watching goes on meanwhile. `tests/support/schedules.py` has the rules.
    """

    @settings(max_examples=most, report_multiple_bugs=False)
    @example(one_after_the_other(Fault))
    @example([Inject(None), Inject(Fault.EMPTY), Inject(Fault.RESET), Pass(HOLD)])  # an agent that starts and dies
    @given(schedules(st.sampled_from(Fault)))
    def keeps_to_the_rules(schedule: Schedule) -> None:
        asyncio.run(_play(agent, schedule))

    keeps_to_the_rules()


async def _play(agent: ConsulAgent, schedule: Schedule) -> None:
    service = f"web-{next(SERVICES)}"
    async with FaultyConsul(agent, service) as consul:
        await consul.publish(frozenset({1, 2, 3, 4}))
        server = ConsulServer(consul.url, wait=0.05, margin=patient(2.0))
        started = time.monotonic()
        try:
            replica = await play(schedule, consul, ConsulSource(server, service))
        finally:
            await server.close()
        assert replica.rounds <= bound(time.monotonic() - started)
        assert consul.asked <= MOST * replica.rounds
        await consul.publish(frozenset())


async def test_no_fault_of_consul_makes_it_spin(agent: ConsulAgent) -> None:
    """While a fault lasts there are no more queries than the bucket allows, however short the pauses after failures."""

    async def watch(fault: Fault) -> None:
        async with FaultyConsul(agent, "spin") as consul:
            consul.inject(fault)
            server = ConsulServer(consul.url)
            source = ConsulSource(server, "spin")
            started = time.monotonic()
            following = asyncio.create_task(follow(source, lambda _: None, first=0.001, cap=0.001))
            await asyncio.sleep(2)
            assert 1 <= consul.asked <= MOST * bound(time.monotonic() - started), fault
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await server.close()

    await asyncio.gather(*map(watch, Fault))
