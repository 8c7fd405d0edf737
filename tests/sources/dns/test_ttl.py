"""When an SRV source sends queries, which it repeats, and which services share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clb_discovery.errors import UnusableError
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.answer import JITTER
from clb_discovery.sources.dns.resolvers import AT_ONCE, Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SOA, SRV, records, shown, source


@pytest.mark.parametrize(
    ("srv_ttl", "cname_ttl", "a_ttl", "negative", "expected"),
    [(1, 60, 60, 60, 1.0), (60, 1, 60, 60, 1.0), (60, 60, 1, 60, 1.0), (60, 60, 60, 1, 1.0), (60, 60, 60, 60, 60.0)],
)
async def test_smallest_ttl_sets_the_wait(
    srv_ttl: int, cname_ttl: int, a_ttl: int, negative: int, expected: float
) -> None:
    """The next query is sent when the first of SRV, CNAME, address or negative answer (SOA minimum) expires."""
    async with FakeDns() as server:
        soa = f"example. 60 SOA ns. admin. 1 3600 600 86400 {negative}"
        server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=srv_ttl))
        alias = f"a.example. {cname_ttl} CNAME b.example."
        server.replies["a.example.", "A"] = Reply([alias, f"b.example. {a_ttl} A 10.0.0.1"])
        server.replies["a.example.", "AAAA"] = Reply([alias], authority=[soa])
        server.replies["b.example.", "AAAA"] = Reply(authority=[soa])
        await asks_again_after(expected, source(server, min_ttl=0.1))


async def asks_again_after(seconds: float, one: SrvSource) -> None:
    """Check that a source queries this many seconds after its first query again, or up to a tenth earlier."""
    clock = asyncio.get_running_loop().time
    earliest = clock()
    await one.next()
    latest = clock()
    assert one.due is not None
    assert earliest + seconds * (1 - JITTER) <= one.due <= latest + seconds


@pytest.mark.parametrize(("ttl", "expected"), [(0, 0.5), (2, 2.0), (600, 3.0)])
@pytest.mark.parametrize("kind", ["records", "target", "name"])
async def test_an_answer_that_cannot_be_used_lasts_for_its_ttl(kind: str, ttl: int, expected: float) -> None:
    """Within the bounds, as any other answer does; a correction counts then."""
    async with FakeDns() as server:
        port = 0 if kind == "records" else 80
        server.replies[SRV] = Reply(records(f"0 1 {port} a.example.", ttl=ttl if kind == "records" else 600))
        server.replies["a.example.", "AAAA"] = Reply([f"a.example. {ttl} AAAA ::ffff:10.0.0.1"])
        resolvers, bounds = Resolvers([server.address]), (0.5, 3.0)
        ipv6 = (False,)
        one = (
            AddressSource("a.example", 80, resolvers, *bounds, families=ipv6)
            if kind == "name"
            else SrvSource(NAME, resolvers, *bounds, families=ipv6)
        )
        clock = asyncio.get_running_loop().time
        earliest = clock()
        with pytest.raises(UnusableError):
            await one.next()
        assert one.due is not None
        assert earliest + expected * (1 - JITTER) <= one.due <= clock() + expected
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        server.replies["a.example.", "AAAA"] = Reply(["a.example. 60 AAAA fd00::1"])
        if ttl == 0:
            assert shown(await one.next()) == ["0 1 [fd00::1]:80"]
            assert clock() >= earliest + expected * (1 - JITTER)


async def test_jitter_asks_early() -> None:
    """With nearly all of the jitter it is the first time on the grid within the last tenth, which has steps of 2 s."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(rcode="NXDOMAIN", authority=[SOA])
        one = source(server, chance=0.999)
        await one.next()
        now = asyncio.get_running_loop().time()
        assert one.due is not None
        assert one.due <= now + 30 * (1 - JITTER) + 2


@pytest.mark.parametrize("rcode", ["NXDOMAIN", "NOERROR"])
@pytest.mark.parametrize(("own", "minimum"), [(1, 60), (60, 1)])
async def test_negative_answer_lasts_as_its_soa_says(rcode: str, own: int, minimum: int) -> None:
    """A negative answer is valid for the SOA record's own TTL or its minimum, the smaller one (RFC 2308 section 5)."""
    async with FakeDns() as server:
        soa = f"example. {own} SOA ns. admin. 1 3600 600 86400 {minimum}"
        server.replies[SRV] = Reply(rcode=rcode, authority=[soa])
        await asks_again_after(1.0, source(server, min_ttl=0.1))


async def test_negative_answer_without_soa_is_not_kept() -> None:
    """NXDOMAIN without a SOA record is queried again after the minimum wait (RFC 2308 section 5)."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(rcode="NXDOMAIN")
        await asks_again_after(0.2, source(server, min_ttl=0.2))


async def test_cancelled_wait_is_resumed() -> None:
    """A cancelled wait that is started again does not query early."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(rcode="NXDOMAIN", authority=[SOA])
        one = source(server)
        await one.next()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one.next(), 0.05)

    assert len(server.asked) == 1


async def test_each_part_is_asked_again_by_its_own_ttl() -> None:
    """A negative AAAA answer is not queried again with each SRV answer, nor the SRV records with each address."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 80 b.other.", ttl=60))
        server.replies["a.example.", "A"] = Reply(["a.example. 1 A 10.0.0.1"])
        server.replies["a.example.", "AAAA"] = Reply(authority=[SOA])
        server.replies["b.other.", "A"] = Reply(["b.other. 60 A 10.0.0.2"])
        server.replies["b.other.", "AAAA"] = Reply(rcode="NXDOMAIN", authority=[SOA.replace("example.", "other.", 1)])
        one = source(server, min_ttl=0.1)
        answer = await one.next()
        before = len(server.asked)

        assert await one.next() == answer

    assert [question[:2] for question in server.asked[before:]] == [("a.example.", "A")]


@pytest.mark.parametrize(("srv_ttl", "a_ttl"), [(60, 1), (1, 60)], ids=["new address", "new records"])
async def test_news_of_one_part_makes_the_other_be_asked_again(srv_ttl: int, a_ttl: int) -> None:
    """A port and an address that change together arrive together, whichever of the two TTLs expires first."""
    async with FakeDns() as server:
        server.replies["a.example.", "AAAA"] = Reply(authority=[SOA])
        one = source(server, min_ttl=0.1)
        answers = []
        for number in (1, 2):
            server.replies[SRV] = Reply(records(f"0 1 8{number} a.example.", ttl=srv_ttl))
            server.replies["a.example.", "A"] = Reply([f"a.example. {a_ttl} A 10.0.0.{number}"])
            answers.append(shown(await one.next()))

    assert answers == [["0 1 10.0.0.1:81"], ["0 1 10.0.0.2:82"]]


async def test_services_share_what_is_known_of_targets() -> None:
    """Of a hundred names on the same two hosts, later rounds query each host once in each family."""
    names = [f"_s{number}._tcp.example." for number in range(100)]
    async with FakeDns() as server:
        for port, name in enumerate(names, 1):
            server.replies[name, "SRV"] = Reply([f"{name} 1 SRV 0 1 {port} {host}.example." for host in "ab"])
        for number, host in enumerate("ab", 1):
            server.replies[f"{host}.example.", "A"] = Reply([f"{host}.example. 1 A 10.0.0.{number}"])
            server.replies[f"{host}.example.", "AAAA"] = Reply(authority=[SOA])
        resolvers = Resolvers([server.address])
        sources = [SrvSource(name, resolvers) for name in names]
        await asyncio.gather(*(one.next() for one in sources))
        before = len(server.asked)

        answers = await asyncio.gather(*(one.next() for one in sources))

    later = [question[0] for question in server.asked[before:]]
    assert {len(answer.servers) for answer in answers} == {2}
    assert sum(name.startswith("_s") for name in later) == 100
    assert 2 <= sum(name in {"a.example.", "b.example."} for name in later) <= 20, "a few, where rounds drift apart"


async def test_thousands_of_services_take_few_sockets() -> None:
    """For any number of services that query at the same moment, the concurrent queries are bounded."""
    async with FakeDns() as server:
        names = [f"_s{number}._tcp.example." for number in range(1500)]
        for name in names:
            server.replies[name, "SRV"] = Reply(rcode="NXDOMAIN", authority=[SOA])
        resolvers = Resolvers([server.address], lifetime=30.0)
        before, most = descriptors(), 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, descriptors())
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(SrvSource(name, resolvers).next() for name in names))
        watching.cancel()

    assert len(answers) == 1500
    assert most - before <= AT_ONCE + 4


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_failure_of_one_service_is_not_that_of_another() -> None:
    """If a service's round is cancelled while another waits for its query, the other sends the query itself."""
    async with FakeDns() as server:
        for port, name in ((1, "_s1._tcp.example."), (2, "_s2._tcp.example.")):
            server.replies[name, "SRV"] = Reply([f"{name} 60 SRV 0 1 {port} a.example."])
        server.replies["a.example.", "A"] = Reply(["a.example. 1 A 10.0.0.1"])
        server.replies["a.example.", "AAAA"] = Reply(authority=[SOA])
        resolvers = Resolvers([server.address])
        first, second = (SrvSource(f"_s{number}._tcp.example.", resolvers) for number in (1, 2))
        await asyncio.gather(first.next(), second.next())
        server.replies["a.example.", "A"] = Reply(silent=True)
        before = len(server.asked)
        given_up, waiting = asyncio.create_task(first.next()), asyncio.create_task(second.next())
        await asyncio.sleep(1.5)
        assert [question[:2] for question in server.asked[before:]] == [("a.example.", "A")]
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        given_up.cancel()

        async with asyncio.timeout(4):
            answer = await waiting

    assert shown(answer) == ["0 1 10.0.0.1:2"]
