"""What is remembered about DNS servers, and for how long."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from dns.nameserver import Do53Nameserver

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.memory import WITHOUT_TCP, Memory
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SRV, records, shown

FOUND = ["0 1 10.0.0.1:80"]


def serve(*servers: FakeDns, ttl: int = 60, truncated: bool = True) -> None:
    """Let these servers have a record that does not fit into a datagram."""
    for server in servers:
        server.replies[SRV] = Reply(
            records("0 1 80 a.example.", ttl=ttl), additional=["a.example. 60 A 10.0.0.1"], truncated=truncated
        )
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])


async def ask(resolvers: Resolvers) -> tuple[list[str], float]:
    """Query as a sidecar that has started; return the servers, and the seconds that it took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    answer = await SrvSource(NAME, resolvers, families=(True,)).next()
    return shown(answer), clock() - began


def tcp_queries(server: FakeDns) -> int:
    """Return how many queries for the records came over TCP."""
    return sum((owner, kind) == SRV and protocol == "tcp" for owner, kind, protocol in server.asked)


@pytest.mark.parametrize(("ttl", "truncated"), [(60, True), (0, False)], ids=["marked", "suspect"])
async def test_server_without_tcp_costs_its_time_twice(ttl: int, *, truncated: bool) -> None:
    """Further queries that need TCP go to the next server; the first one is still the first over UDP."""
    async with FakeDns() as first, FakeDns() as second:
        serve(first, second, ttl=ttl, truncated=truncated)
        first.replies[SRV].tcp_silent = True
        resolvers = Resolvers([first.address, second.address], lifetime=2.0)
        taken = [await ask(resolvers) for _ in range(4)]
    assert [found for found, _ in taken] == [FOUND] * 4
    assert all(seconds >= 0.5 for _, seconds in taken[:2])
    assert all(seconds < 0.4 for _, seconds in taken[2:])
    assert tcp_queries(first) == 2
    assert [protocol for _, kind, protocol in first.asked if kind == "SRV"].count("udp") == 4


@pytest.mark.parametrize("reply", [Reply(rcode="SERVFAIL"), Reply(silent=True)], ids=["SERVFAIL", "silence"])
async def test_server_without_tcp_is_queried_over_it_if_no_other_answers(reply: Reply) -> None:
    """Its answer is then better than none, and from then on it is the first one again."""
    async with FakeDns() as first, FakeDns() as second:
        serve(first, second)
        first.replies[SRV].tcp_silent = True
        resolvers = Resolvers([first.address, second.address], lifetime=2.0)
        for _ in range(2):
            await ask(resolvers)
        first.replies[SRV].tcp_silent = False
        second.replies[SRV] = reply
        assert (await ask(resolvers))[0] == FOUND
        before = len(second.asked)
        assert (await ask(resolvers))[0] == FOUND
    assert len(second.asked) == before
    assert tcp_queries(first) == 4


async def test_only_server_is_queried_over_tcp_each_time() -> None:
    """There is none to query before it, so its first answer over TCP counts."""
    async with FakeDns() as server:
        serve(server)
        server.replies[SRV].tcp_silent = True
        resolvers = Resolvers([server.address], lifetime=0.4)
        with pytest.raises(SourceError, match=r"no answer from .* \(TCP\), after a UDP answer"):
            await ask(resolvers)
        server.replies[SRV].tcp_silent = False
        assert (await ask(resolvers))[0] == FOUND


def test_silence_over_tcp_has_an_end() -> None:
    """The first one counts for nothing, and each further one in a row twice as long, up to a limit."""
    memory, server, other = Memory(), Do53Nameserver("10.0.0.53"), Do53Nameserver("10.0.0.54")
    least, most = WITHOUT_TCP
    lengths, now = [], 1000.0
    for _ in range(8):
        lengths.append(memory.was_silent_over_tcp(server, now))
        assert not lengths[-1] or not memory.knows_tcp(server, now + lengths[-1] - 1)
        assert memory.knows_tcp(other, now)
        now += lengths[-1]
        assert memory.knows_tcp(server, now)
    assert lengths[:2] == [0, least]
    assert all(after == min(2 * before, most) for before, after in pairwise(lengths[1:]))
    assert lengths[-1] == most
    memory.answered_over_tcp(server)
    assert memory.was_silent_over_tcp(server, now) == 0
