"""The SRV source with Consul's own DNS interface: TTL 0, random order, and answers trimmed without a mark."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from clb_discovery.model.address import format_address
from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.consul import ConsulAgent

NAME = "_redis._tcp.service.consul"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ConsulAgent]:
    """Run an agent."""
    with ConsulAgent(tmp_path) as running:
        yield running


def source(agent: ConsulAgent, name: str = NAME) -> SrvSource:
    """Build a source that queries Consul often."""
    return SrvSource(name, Resolvers([f"127.0.0.1:{agent.dns_port}"]), min_ttl=0.05)


async def eventually(one: SrvSource, count: int) -> Answer:
    """Return the first answer with this many servers; Consul's catalog follows its agent within a second or so."""
    async with asyncio.timeout(20):
        while len((answer := await one.next()).servers) != count:
            pass
    return answer


async def test_all_instances_every_time(agent: ConsulAgent) -> None:
    """All 40 instances in both families are in each of 10 answers, although UDP carries less than half of them."""
    for i in range(20):
        agent.register("redis", 7000 + i, f"10.0.0.{i + 1}")
        agent.register("redis", 7000 + i, f"fd00::{i + 1:x}")
    one = source(agent)
    first = await eventually(one, 40)

    later = [await one.next() for _ in range(10)]

    expected = {(f"10.0.0.{i + 1}", 7000 + i) for i in range(20)} | {(f"fd00::{i + 1:x}", 7000 + i) for i in range(20)}
    assert {(format_address(server.address), server.port) for server in first.servers} == expected
    assert all(answer == first for answer in later)


async def test_weights_and_health(agent: ConsulAgent) -> None:
    """Consul's weights arrive as SRV weights, and a critical instance is out until it passes again."""
    agent.register("redis", 7001, "10.0.0.1", weights=(3, 1))
    second = agent.register("redis", 7002, "10.0.0.2", weights=(5, 1))
    one = source(agent)
    both = await eventually(one, 2)
    agent.set_status(second, "critical")
    alone = await eventually(one, 1)
    agent.set_status(second, "passing")
    again = await eventually(one, 2)

    assert {(server.port, server.weight) for server in both.servers} == {(7001, 3), (7002, 5)}
    assert [server.port for server in alone.servers] == [7001]
    assert again == both


async def test_unknown_service_is_an_answer(agent: ConsulAgent) -> None:
    """Consul returns NXDOMAIN for a service without instances; that is a valid empty answer."""
    assert await source(agent, "_nobody._tcp.service.consul").next() == Answer(())


async def test_plain_service_name(agent: ConsulAgent) -> None:
    """Consul's own form of the name, without underscores, works, too."""
    agent.register("redis", 7001)

    answer = await eventually(source(agent, "redis.service.consul"), 1)

    assert [str(server) for server in answer.servers] == ["127.0.0.1:7001"]
