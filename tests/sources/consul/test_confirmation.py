"""Which answers of Consul may confirm a removal: those of the leader alone."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from aiohttp import web

from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.model.answer import Failure, Outcome
from clb_discovery.model.service import RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sources.consul.server import LOCAL, ConsulServer, Limits
from clb_discovery.sources.consul.source import ConsulSource
from clb_discovery.state.service import ServiceState
from clb_discovery.state.services import ServiceTable
from tests.support.fake_consul import FakeConsul, Reply, instance

HOLD: Final = 0.5
FEW: Final = Limits(0, 8)
"""No service has a blocking query of its own."""
REDIS: Final = Service("redis", "consul:redis", (parse_vip("10.64.0.1:6379"),), policy=RemovalPolicy(0.5, HOLD))


def full() -> list[dict[str, Any]]:
    """Return three instances."""
    found = [instance(f"10.0.0.{number}") for number in (1, 2, 3)]
    for entry in found:
        entry["Service"]["ID"] = entry["Service"]["Address"]
    return found


class Divided(FakeConsul):
    """The leader, and another server which is behind it; the catalog has changed whenever it is queried."""

    def __init__(self) -> None:
        super().__init__()
        self.leader = self.other = Reply()
        self.confirmed = 0.0
        """When the last query came that only the leader could answer, after a quorum had confirmed it."""

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        consistent = "consistent" in request.query
        self.confirmed = time.monotonic() if consistent else self.confirmed
        if "/v1/health/service/" in request.path or request.method == "POST":
            self.replies = [self.leader if consistent else self.other]
            return await super()._answer(request)
        self.changes += 1
        return web.json_response([], headers={"X-Consul-Index": str(self.changes)})

    changes = 0


class Followed:
    """What the sidecar does with the source of one service, without its kernel."""

    def __init__(self, fake: Divided, limits: Limits) -> None:
        self._fake, self._limits = fake, limits
        self.table = ServiceTable([REDIS])
        self._open()

    def _open(self) -> None:
        self._server = ConsulServer(self._fake.url, limits=self._limits)
        self._source = ConsulSource(self._server, "redis")

    async def reload(self) -> None:
        """Go on with another source, as after SIGHUP."""
        await self.close()
        self.table.adopt([REDIS])
        self._open()

    async def close(self) -> None:
        """Close the connections."""
        await self._source.end()
        await self._server.close()

    async def hear(self) -> ServiceState:
        """Hear one outcome, and hasten the source if it is due then."""
        outcome: Outcome
        try:
            outcome = await self._source.next()
            assert outcome.asked <= self._fake.confirmed
        except SourceError as error:
            outcome = Failure(str(error), unusable=isinstance(error, UnusableError))
        now = time.monotonic()
        self.table.hear("consul:redis", outcome, now, datetime.now(UTC))
        for _ in self.table.due(now):
            self._source.hasten()
        return next(iter(self.table))


async def held(fake: Divided, limits: Limits) -> Followed:
    """Return a service with a removal that is held, whose clock has run while Consul failed."""
    followed = Followed(fake, limits)
    for reply in (Reply(full(), index="5"), Reply([], index="6"), Reply(status=500)):
        fake.leader = fake.other = reply
        state = await followed.hear()
    assert state.held
    assert state.error
    await asyncio.sleep(HOLD)
    return followed


@pytest.mark.parametrize("limits", [LOCAL, FEW], ids=["direct", "shared"])
@pytest.mark.parametrize("reloads", [False, True])
async def test_a_server_that_is_behind_confirms_no_removal(limits: Limits, *, reloads: bool) -> None:
    """The leader has all instances, so nothing is removed, whichever server answers the first query after a reload."""
    async with Divided() as fake:
        followed = await held(fake, limits)
        if reloads:
            await followed.reload()
        fake.leader, fake.other = Reply(full(), index="9"), Reply([], index="6")
        states = [await followed.hear() for _ in range(2)]
        assert "fresh" in [state.state for state in states]
        assert all(len(state.guarded.good.ipv4) == 3 for state in states)
        await followed.close()


@pytest.mark.parametrize("limits", [LOCAL, FEW], ids=["direct", "shared"])
@pytest.mark.parametrize("reloads", [False, True])
async def test_the_leader_confirms_a_removal_at_once(limits: Limits, *, reloads: bool) -> None:
    """It is queried once, after the first query if there was a reload."""
    async with Divided() as fake:
        followed = await held(fake, limits)
        if reloads:
            await followed.reload()
        fake.leader, fake.other, before = Reply([], index="9"), Reply([], index="9"), len(fake.asked)
        states = [await followed.hear() for _ in range(2 if reloads else 1)]
        assert [(state.held, len(state.guarded.good.ipv4)) for state in states][-1] == (False, 0)
        assert len(fake.asked) == before + len(states)
        assert "consistent" in fake.queries[-1]
        await followed.close()


async def test_instances_that_cannot_be_used_confirm_nothing() -> None:
    """After such an answer of the leader, a server that is behind it ends no hold, and the leader is queried once."""
    async with Divided() as fake:
        followed = await held(fake, LOCAL)
        fake.leader = Reply([instance(port=0)], index="9")
        assert "no instance can be used" in str((await followed.hear()).error)
        fake.leader, fake.other, before = Reply(full(), index="9"), Reply([], index="8"), len(fake.asked)
        state = await followed.hear()
        assert (state.state, len(state.guarded.good.ipv4)) == ("fresh", 3)
        assert [set(query) for query in fake.queries[before:]] == [{"stale", "index", "wait"}, {"consistent"}]
        await followed.close()
