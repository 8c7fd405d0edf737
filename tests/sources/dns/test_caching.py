"""The sources of DNS behind real caching resolvers, unbound and systemd-resolved, in front of a real Knot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import dns.flags
import dns.message
import dns.query
import pytest
from dns.rdatatype import A

from clb_discovery.errors import SourceError
from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.caching_dns import CACHING, CachingServer
from tests.support.knot import KnotServer
from tests.support.pace import patient

NAME: Final = "db.example"


@pytest.fixture
def knot() -> Iterator[KnotServer]:
    """Run a server with two zones."""
    with KnotServer({"example": "", "other": ""}) as server:
        yield server


@pytest.fixture(params=CACHING, ids=lambda make: make.__name__)
def cache(request: pytest.FixtureRequest, knot: KnotServer, tmp_path: Path) -> Iterator[CachingServer]:
    """Run a resolver in front of it."""
    with request.param(tmp_path, knot.port) as server:
        yield server


def source(cache: CachingServer, least: float = 0.05, most: float = 60.0) -> AddressSource:
    """Return the source of the name."""
    return AddressSource(NAME, 5432, Resolvers([cache.address], lifetime=patient(1.0)), least, most)


def addresses(answer: Answer) -> list[str]:
    """Return the addresses of the real servers."""
    return [str(server).rpartition(":")[0] for server in answer.servers]


def datagram(cache: CachingServer) -> dns.message.Message:
    """Return what the resolver answers over UDP."""
    query = dns.message.make_query(NAME, A, use_edns=0, payload=1232)
    return dns.query.udp(query, "127.0.0.1", port=cache.port, timeout=patient(10), ignore_unexpected=True)


async def test_rotation_changes_nothing(knot: KnotServer, cache: CachingServer) -> None:
    """The resolver has the same twenty addresses in many orders; to the source they are one answer."""
    knot.write("\n".join(f"db A 10.0.0.{number}" for number in range(1, 21)), ttl=30)

    one = source(cache, 0.02, 0.02)
    answers = [await one.next() for _ in range(30)]

    assert len({str(datagram(cache).answer[0][0]) for _ in range(20)}) > 1
    assert len(answers[0].servers) == 20
    assert answers == [answers[0]] * 30


async def test_chain_is_followed_with_its_smallest_ttl(knot: KnotServer, cache: CachingServer) -> None:
    """CNAMEs lead over two zones to the addresses of both families, for as long as the shortest of them is valid."""
    knot.write("db 60 CNAME near\nnear 60 CNAME far.other.", negative_ttl=60)
    knot.write("far 5 CNAME last\nlast 60 A 10.0.0.9\nlast 60 AAAA fd00::9", "other")
    one, clock = source(cache), asyncio.get_running_loop().time

    answer = await one.next()

    assert addresses(answer) == ["10.0.0.9", "[fd00::9]"]
    assert one.due is not None
    assert one.due <= clock() + 5


async def test_failover_is_seen_when_the_ttl_ends(knot: KnotServer, cache: CachingServer) -> None:
    """As RDS does it: the resolver has the former address for the TTL of 5 s, and the source hardly longer."""
    hosts = "host-a A 10.0.0.1\nhost-b A 10.0.0.2\n"
    knot.write(f"db 5 CNAME host-a\n{hosts}", ttl=60, negative_ttl=60)
    one, clock = source(cache, 1.0), asyncio.get_running_loop().time
    assert addresses(await one.next()) == ["10.0.0.1"]
    knot.write(f"db 5 CNAME host-b\n{hosts}", ttl=60, negative_ttl=60)
    began = clock()

    while addresses(await one.next()) == ["10.0.0.1"]:
        pass

    assert clock() - began < 5 + patient(3)


async def test_two_hundred_addresses_are_whole(knot: KnotServer, cache: CachingServer) -> None:
    """They do not fit into a datagram, which the resolver marks, and come over TCP, all of them, every time."""
    knot.write("\n".join(f"db A 10.0.1.{i}\ndb AAAA fd00::1:{i:x}" for i in range(200)))
    one = source(cache)

    answers = [await one.next() for _ in range(3)]

    assert datagram(cache).flags & dns.flags.TC
    assert len(set(answers[0].servers)) == 400
    assert answers == [answers[0]] * 3


async def test_srv_records_have_the_addresses_of_their_targets(knot: KnotServer, cache: CachingServer) -> None:
    """With or without them in the additional section."""
    knot.write("_db._tcp SRV 0 10 5432 a\n_db._tcp SRV 1 5 5433 x.other.\na A 10.0.0.1\na AAAA fd00::1")
    knot.write("x A 10.0.0.9", "other")

    answer = await SrvSource("_db._tcp.example", Resolvers([cache.address])).next()

    found = [f"{server.priority} {server.weight} {server}" for server in answer.servers]
    assert found == ["0 10 10.0.0.1:5432", "0 10 [fd00::1]:5432", "1 5 10.0.0.9:5433"]


async def test_resolver_that_dies_is_a_failure_until_it_is_back(knot: KnotServer, cache: CachingServer) -> None:
    """No answer in between is an empty one, and the first one afterwards is complete."""
    knot.write("db A 10.0.0.1\ndb AAAA fd00::1")
    one = source(cache)
    before = await one.next()
    cache.kill()
    for _ in range(2):
        with pytest.raises(SourceError, match="from 127"):
            await one.next()
    cache.start()

    assert await one.next() == before


async def test_server_behind_it_that_dies_is_a_failure_until_it_is_back(knot: KnotServer, cache: CachingServer) -> None:
    """When the cache has expired, the resolver reports SERVFAIL or nothing: an error, or one family that is unread."""
    knot.write("db A 10.0.0.1\ndb AAAA fd00::1")
    one = source(cache)
    before = await one.next()
    knot.stop()
    while (answer := await answer_or_none(one)) is not None:
        assert answer == before or answer.unread
    knot.start()

    async with asyncio.timeout(patient(60)):
        while (answer := await answer_or_none(one)) != before:
            assert answer is None or answer.unread


async def answer_or_none(one: AddressSource) -> Answer | None:
    """Return the next answer; None for an error, before which a sidecar would pause."""
    try:
        return await one.next()
    except SourceError:
        await asyncio.sleep(0.2)
        return None


async def test_no_records_are_no_servers(knot: KnotServer, cache: CachingServer) -> None:
    """NXDOMAIN through the resolver is a valid empty answer."""
    knot.write("")

    assert await source(cache).next() == Answer(())
