"""Long polls to the real Consul through a proxy that cuts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from structlog.testing import capture_logs

from clb_discovery.errors import SourceError
from clb_discovery.model.answer import Answer, Outcome
from clb_discovery.sources.base import Source
from clb_discovery.sources.consul.server import LOCAL, ConsulServer
from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource
from clb_discovery.sources.follow import follow
from tests.support.consul import ConsulAgent
from tests.support.faulty_consul import Cut, Fault, FaultyConsul
from tests.support.pace import patient
from tests.support.schedules import real_server

SOON = patient(5.0)
CUTS = [Cut(1.2, 504), Cut(1.2, 502), Cut(1.2, 408), Cut(1.2, None)]
WAIT = 60.0


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """One agent for all tests; each has a service of its own."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running


@asynccontextmanager
async def following(source: Source) -> AsyncIterator[list[Outcome]]:
    """Follow a source while the block runs; return its outcomes."""
    heard: list[Outcome] = []
    task = asyncio.create_task(follow(source, heard.append))
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def heard_until(heard: list[Outcome], *numbers: int) -> None:
    """Wait until the last answer has these real servers."""
    expected = frozenset(map(real_server, numbers))
    async with asyncio.timeout(SOON):
        while not (heard and isinstance(heard[-1], Answer) and frozenset(heard[-1].servers) == expected):  # noqa: ASYNC110  # a list has no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("cut", CUTS, ids=str)
async def test_a_cut_long_poll_is_no_failure(agent: ConsulAgent, cut: Cut) -> None:
    """The source stays fresh, logs nothing and does not query the leader; no change is missed or late."""
    service = f"cut-{cut.status}"
    async with FaultyConsul(agent, service, cut) as consul:
        await consul.publish(frozenset({1, 2}))
        server = ConsulServer(consul.url, wait=WAIT)
        with capture_logs() as logs:
            async with following(ConsulSource(server, service)) as heard:
                await heard_until(heard, 1, 2)
                await consul.cut_times(2)
                await asyncio.sleep(0.3)
                changed = time.monotonic()
                await consul.publish(frozenset({1, 2, 3}))
                await heard_until(heard, 1, 2, 3)
                assert time.monotonic() - changed < 1
                await asyncio.sleep(2 * cut.after)
                await consul.publish(frozenset({3}))
                await heard_until(heard, 3)
        await server.close()
    assert all(isinstance(outcome, Answer) for outcome in heard)
    assert not [line for line in logs if line["log_level"] != "debug"]
    assert all("stale" in query for path, query in consul.queries if path.startswith("/v1/health/service/"))
    assert len(consul.queries) <= 2 * consul.cuts + 6


async def test_a_cut_poll_before_a_dead_agent_is_a_failure(agent: ConsulAgent) -> None:
    """It is an error if Consul does not answer a query that does not wait, either."""
    async with FaultyConsul(agent, "dead") as consul:
        await consul.publish(frozenset({1}))
        server = ConsulServer(consul.url, wait=WAIT)
        source = ConsulSource(server, "dead")
        await source.next()
        waiting = asyncio.create_task(source.next())
        await asyncio.sleep(1.2)
        consul.inject(Fault.UNAVAILABLE)
        with pytest.raises(SourceError, match="returned 503"):
            await asyncio.wait_for(waiting, SOON)
        consul.inject(None)
        assert set((await source.next()).servers) == {real_server(1)}
        assert "consistent" in consul.queries[-1][1]
        await server.close()


async def test_a_poll_that_is_refused_at_once_is_a_failure(agent: ConsulAgent) -> None:
    """A proxy that answers 504 without waiting cannot reach Consul."""
    async with FaultyConsul(agent, "refused", Cut(0.0, 504)) as consul:
        server = ConsulServer(consul.url, wait=WAIT)
        with pytest.raises(SourceError, match="returned 504"):
            await asyncio.wait_for(ConsulSource(server, "refused").next(), SOON)
        await server.close()


async def test_after_a_cut_an_answer_older_than_the_last_is_overruled_by_the_leader(agent: ConsulAgent) -> None:
    """A server that restarted behind the proxy answers before it has applied its log."""
    async with FaultyConsul(agent, "older") as consul:
        await consul.publish(frozenset({1, 2}))
        server = ConsulServer(consul.url, wait=2.0)
        source = ConsulSource(server, "older")
        await source.next()
        waiting = asyncio.create_task(source.next())
        await asyncio.sleep(1.2)
        consul.restart()
        answer = await asyncio.wait_for(waiting, SOON)
        assert set(answer.servers) == {real_server(1), real_server(2)}
        await server.close()


@pytest.mark.parametrize("cut", CUTS[::3], ids=str)
async def test_cut_polls_make_nobody_ask_for_every_service(agent: ConsulAgent, cut: Cut) -> None:
    """When services share the queries of the catalog, a cut query is not a change, and real changes still arrive."""
    names = [f"shared-{cut.status}-{number}" for number in range(5)]
    async with FaultyConsul(agent, names[0], cut) as consul:
        await consul.publish(frozenset({1}))
        server = ConsulServer(consul.url, wait=WAIT, limits=LOCAL._replace(direct=0))
        sources = [ConsulSource(server, name) for name in names]
        async with AsyncExitStack() as stack:
            heard = [await stack.enter_async_context(following(source)) for source in sources]
            await heard_until(heard[0], 1)
            await consul.cut_times(3)  # by then the watch of the catalog has started
            asked = len(of_services(consul))
            await consul.cut_times(consul.cuts + 6)
            assert len(of_services(consul)) == asked
            await consul.publish(frozenset({1, 2}))
            await heard_until(heard[0], 1, 2)
            assert all(isinstance(outcome, Answer) for one in heard for outcome in one)
        await server.close()


def of_services(consul: FaultyConsul) -> list[dict[str, str]]:
    """Return the queries for single services so far."""
    return [query for path, query in consul.queries if path.startswith("/v1/health/service/")]


@pytest.mark.parametrize("cut", CUTS[::3], ids=str)
async def test_a_cut_list_of_services_is_no_failure(agent: ConsulAgent, cut: Cut) -> None:
    """In catalog mode the list stays fresh, and new names arrive at once."""
    async with FaultyConsul(agent, "listed", cut) as consul:
        server = ConsulServer(consul.url, wait=WAIT)
        catalog = ConsulCatalog(server)
        with capture_logs() as logs:
            async with following(catalog) as heard:
                await consul.cut_times(2)
                assert [path for path, _ in consul.queries].count("/v1/internal/ui/services") == 1  # at the leader
                name = f"late-{cut.status}"
                agent.register(name, 1, "10.0.0.1", Tags=["clb"])
                async with asyncio.timeout(SOON):
                    while name not in getattr(heard[-1], "names", ()):  # noqa: ASYNC110  # a list has no event
                        await asyncio.sleep(0.02)
        await server.close()
    assert not any(hasattr(outcome, "reason") for outcome in heard)
    assert not [line for line in logs if line["log_level"] != "debug"]
