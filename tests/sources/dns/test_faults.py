"""The sources of DNS over random schedules of faults, played by a proxy in front of a real server."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.exchange import Servers
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from clb_discovery.sources.follow import follow
from tests.support.faulty_dns import HOST, NAME, PORT, SLOW, Fault, FaultyDns, FaultyName
from tests.support.knot import KnotServer
from tests.support.pace import effort, patient
from tests.support.schedules import Schedule, one_after_the_other, play, schedules

QUICK: Final = [fault for fault in Fault if fault not in SLOW]
FAULTS: Final = st.sampled_from([*QUICK * 3, *SLOW])
OF_TARGETS: Final = st.sampled_from(QUICK)
"""A target without an answer is queried again in the background, so the answer that counts is not certain at once."""
INJECTED: Final = st.dictionaries(st.just(NAME), FAULTS) | st.dictionaries(st.integers(1, 5), OF_TARGETS, max_size=3)
OF_TYPES: Final = st.fixed_dictionaries({}, optional={"A": FAULTS, "AAAA": OF_TARGETS})
MOST: Final = 100
"""Queries of one round: up to five targets in two families, each repeated after a time-out or over TCP."""


class Patience(Resolvers):
    """The proxy as the only server. Queries that need an answer wait for a slow machine, others do not."""

    def __init__(self, server: FaultyDns) -> None:
        super().__init__([server.address])
        self._server = server

    def current(self) -> Servers:
        """Return the resolver for the next round."""
        resolver = copy.copy(super().current())
        resolver.lifetime = patient(0.15 if self._server.says() is None else 8.0)
        return resolver


@pytest.fixture(scope="module")
def knot() -> Iterator[KnotServer]:
    """Run a server with the zones of `FaultyDns`."""
    addresses = "\n".join(f"s{number} A 10.0.0.{number}" for number in range(1, 10))
    with KnotServer({"example": "", "other": addresses}) as server:
        yield server


@pytest.mark.parametrize("most", [effort(5, 2), pytest.param(effort(100, 10), marks=pytest.mark.discovery)])
def test_srv_under_faults_keeps_to_the_rules(knot: KnotServer, most: int) -> None:
    """Through any faults in any order, errors change nothing, wrong answers are held, correct ones count.

    Watching goes on meanwhile. `tests/support/schedules.py` has the rules.
    """

    @settings(max_examples=most, report_multiple_bugs=False)
    @example(one_after_the_other({name: fault} for name, faults in ((NAME, Fault), (1, QUICK)) for fault in faults))
    @given(schedules(INJECTED))
    def keeps_to_the_rules(schedule: Schedule) -> None:
        asyncio.run(_play(knot, schedule))

    keeps_to_the_rules()


async def _play(knot: KnotServer, schedule: Schedule) -> None:
    async with FaultyDns(knot) as server:
        await server.publish(frozenset({1, 2, 3, 4}))
        source = SrvSource(NAME, Patience(server), 0.02, 0.02)
        replica = await play(schedule, server, source)
        assert len(server.asked) <= MOST * replica.rounds


@pytest.mark.parametrize("most", [effort(5, 2), pytest.param(effort(100, 10), marks=pytest.mark.discovery)])
def test_plain_name_under_faults_keeps_to_the_rules(knot: KnotServer, most: int) -> None:
    """The same for the addresses of a plain name, whichever of its two types fails."""

    @settings(max_examples=most, report_multiple_bugs=False)
    @example(one_after_the_other({kind: fault} for kind, faults in (("A", Fault), ("AAAA", QUICK)) for fault in faults))
    @given(schedules(OF_TYPES))
    def keeps_to_the_rules(schedule: Schedule) -> None:
        asyncio.run(_play_name(knot, schedule))

    keeps_to_the_rules()


async def _play_name(knot: KnotServer, schedule: Schedule) -> None:
    async with FaultyName(knot) as server:
        await server.publish(frozenset({1, 2, 3, 4}))
        source = AddressSource(HOST, PORT, Patience(server), 0.02, 0.02)
        replica = await play(schedule, server, source)
        assert len(server.asked) <= MOST * replica.rounds


async def test_no_fault_of_dns_makes_it_spin(knot: KnotServer) -> None:
    """While a fault lasts there are few queries: rounds pause for their backoff or TTL, and are bounded themselves."""

    async def watch(fault: Fault, *, srv: bool) -> None:
        async with FaultyDns(knot) if srv else FaultyName(knot) as server:
            server.inject({NAME: fault, "A": fault, "AAAA": fault})
            resolvers = Resolvers([server.address])
            source = SrvSource(NAME, resolvers) if srv else AddressSource(HOST, PORT, resolvers)
            following = asyncio.create_task(follow(source, lambda _: None))
            await asyncio.sleep(2)
            assert 1 <= len(server.asked) <= MOST, fault
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    knot.write("_web._tcp SRV 0 1 8001 s1.other.\ndb A 10.0.0.1")
    await asyncio.gather(*(watch(fault, srv=srv) for fault in Fault for srv in (True, False)))
