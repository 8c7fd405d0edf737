"""The sources of DNS with a real authoritative server, whose zone is edited while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from clb_discovery.errors import SourceError
from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.answer import JITTER
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.source import DnsSource
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.knot import KnotServer

BOTH = "a A 10.0.0.1\na AAAA fd00::1\nb A 10.0.0.2\n"


@pytest.fixture
def knot() -> Iterator[KnotServer]:
    """Run a server with two zones."""
    with KnotServer({"example": "", "other": ""}) as server:
        yield server


def source(knot: KnotServer, name: str = "_redis._tcp.example") -> SrvSource:
    """Build a source that gives up early."""
    return SrvSource(name, Resolvers([knot.address], lifetime=0.5), min_ttl=0.05)


def shown(answer: Answer) -> list[str]:
    """Return the servers as text: priority, weight, address and port."""
    return [f"{server.priority} {server.weight} {server}" for server in answer.servers]


async def test_priorities_weights_and_both_families(knot: KnotServer) -> None:
    """Priority, weight and port of every record arrive with the addresses of both families."""
    knot.write("_redis._tcp SRV 0 10 6379 a\n_redis._tcp SRV 10 0 6380 b\n" + BOTH)

    answer = await source(knot).next()

    assert shown(answer) == ["0 10 10.0.0.1:6379", "0 10 [fd00::1]:6379", "10 0 10.0.0.2:6380"]


async def test_live_edit_is_seen(knot: KnotServer) -> None:
    """A change of the zone is in the next answer, which comes when the TTL of one second has expired."""
    knot.write("_redis._tcp SRV 0 1 6379 b\n" + BOTH)
    one = source(knot)
    before = await one.next()
    knot.write("_redis._tcp SRV 0 7 6390 b\n" + BOTH)

    after = await one.next()

    assert shown(before) == ["0 1 10.0.0.2:6379"]
    assert shown(after) == ["0 7 10.0.0.2:6390"]


async def test_answer_larger_than_4_kb(knot: KnotServer) -> None:
    """Two hundred records with as many targets, which do not fit into UDP, are all there every time."""
    lines = [
        f"_redis._tcp SRV 0 1 {7000 + i} host-{i}\nhost-{i} A 10.0.1.{i}\nhost-{i} AAAA fd00::1:{i:x}"
        for i in range(200)
    ]
    knot.write("\n".join(lines))
    one = source(knot)

    answers = [await one.next() for _ in range(2)]

    assert len(set(answers[0].servers)) == 400
    assert answers[0] == answers[1]


@pytest.mark.parametrize("targets", [1000, 40])
async def test_thousand_records(knot: KnotServer, targets: int) -> None:
    """A thousand records are all there, although the addresses of their targets exceed the largest DNS message."""
    lines = [f"_redis._tcp SRV 0 1 {7000 + i} host-{i % targets}" for i in range(1000)]
    lines += [f"host-{i} A 10.0.{i // 250}.{i % 250 + 1}\nhost-{i} AAAA fd00::1:{i:x}" for i in range(targets)]
    knot.write("\n".join(lines), ttl=60)

    answer = await SrvSource("_redis._tcp.example", Resolvers([knot.address])).next()

    assert {server.port for server in answer.servers} == set(range(7000, 8000))
    assert len(set(answer.servers)) == 2000


async def test_negative_answer_lasts_as_the_zone_says(knot: KnotServer) -> None:
    """An empty answer is queried again after the zone's negative TTL of two seconds."""
    knot.write("", ttl=60, negative_ttl=2)
    one = source(knot)
    assert await one.next() == Answer(())
    knot.write("_redis._tcp SRV 0 1 6379 a\n" + BOTH)
    clock = asyncio.get_running_loop().time
    start = clock()

    after = await one.next()

    assert clock() - start > 1.5
    assert len(after.servers) == 2


async def test_cname_targets(knot: KnotServer) -> None:
    """Targets that are CNAMEs within the zone and into another are followed, in both families."""
    knot.write("_redis._tcp SRV 0 1 6379 near\n_redis._tcp SRV 0 1 6380 far\nnear CNAME a\nfar CNAME x.other.\n" + BOTH)
    knot.write("x CNAME y\ny A 10.0.0.9\ny AAAA fd00::9", "other")

    answer = await source(knot).next()

    assert [str(server) for server in answer.servers] == [
        "10.0.0.1:6379",
        "10.0.0.9:6380",
        "[fd00::1]:6379",
        "[fd00::9]:6380",
    ]


async def test_cname_at_the_owner(knot: KnotServer) -> None:
    """The record name may be a CNAME into another zone."""
    knot.write("_redis._tcp CNAME _cache._tcp.other.")
    knot.write("_cache._tcp SRV 0 1 6379 a\na A 10.0.0.9", "other")

    answer = await source(knot).next()

    assert shown(answer) == ["0 1 10.0.0.9:6379"]


async def test_target_in_a_foreign_zone_is_unread(knot: KnotServer) -> None:
    """A target in a zone that the server does not have keeps its last addresses: REFUSED does not mean "no address"."""
    knot.write("_redis._tcp SRV 0 1 6379 a\n_redis._tcp SRV 0 1 6379 a.elsewhere.\n" + BOTH)

    answer = await source(knot).next()

    assert {one.identity for one in answer.unread} == {"a.elsewhere."}
    assert {*answer.identities.values()} == {"a.example."}
    assert [one.value for one in answer.left_out] == ["target a.elsewhere."] * len(answer.left_out)
    assert "A: REFUSED" in answer.left_out[0].reason


async def test_foreign_name_is_refused(knot: KnotServer) -> None:
    """A record name in a zone that the server does not have is a failure."""
    with pytest.raises(SourceError, match="REFUSED from 127"):
        await source(knot, "_redis._tcp.elsewhere").next()


async def test_cname_loop_is_a_failure(knot: KnotServer) -> None:
    """A CNAME loop in the zone is a failure, whatever the server returns for it."""
    knot.write("_redis._tcp SRV 0 1 6379 a\na CNAME b\nb CNAME a")

    with pytest.raises(SourceError, match=r"of a\.example\."):
        await source(knot).next()


async def test_unloaded_zone_is_a_failure(knot: KnotServer) -> None:
    """SERVFAIL, the answer for a configured zone that could not be loaded, is a failure."""
    knot.purge()

    with pytest.raises(SourceError, match="SERVFAIL from 127"):
        await source(knot).next()


@pytest.mark.parametrize("zone", ["", "_redis._tcp TXT nothing", "_redis._tcp SRV 0 0 0 ."])
async def test_authoritative_none(knot: KnotServer, zone: str) -> None:
    """NXDOMAIN, NODATA and the target "." are valid empty answers."""
    knot.write(zone)

    assert await source(knot).next() == Answer(())


def host(knot: KnotServer, name: str = "db.example") -> AddressSource:
    """Build the source of a plain name that gives up early."""
    return AddressSource(name, 5432, Resolvers([knot.address], lifetime=0.5), min_ttl=0.05)


def addresses(answer: Answer) -> list[str]:
    """Return the real servers as text."""
    return [str(server) for server in answer.servers]


async def test_plain_name_has_both_families_in_one_order(knot: KnotServer) -> None:
    """Its A and AAAA records are real servers, sorted, and a live edit is in the next answer."""
    knot.write("db A 10.0.0.2\ndb A 10.0.0.1\ndb AAAA fd00::1")
    one = host(knot)
    before = await one.next()
    knot.write("db A 10.0.0.1\ndb A 10.0.0.3\ndb AAAA fd00::1")

    after = await one.next()

    assert addresses(before) == ["10.0.0.1:5432", "10.0.0.2:5432", "[fd00::1]:5432"]
    assert addresses(after) == ["10.0.0.1:5432", "10.0.0.3:5432", "[fd00::1]:5432"]


async def test_plain_name_behind_cnames(knot: KnotServer) -> None:
    """CNAMEs within the zone and into another are followed; the smallest TTL of the chain is that of the answer."""
    knot.write("db 60 CNAME near\nnear 60 CNAME far.other.", negative_ttl=60)
    knot.write("far 5 CNAME last\nlast 60 A 10.0.0.9\nlast 60 AAAA fd00::9", "other")
    one = host(knot)
    clock = asyncio.get_running_loop().time
    began = clock()

    answer = await one.next()

    assert addresses(answer) == ["10.0.0.9:5432", "[fd00::9]:5432"]
    assert one.due is not None
    assert began + 5 * (1 - JITTER) <= one.due <= clock() + 5


async def test_failover_of_a_database_is_seen_by_its_ttl(knot: KnotServer) -> None:
    """As RDS does it: the CNAME of the endpoint has a TTL of 5 s, and leads to another host from one moment on."""
    hosts = "host-a A 10.0.0.1\nhost-b A 10.0.0.2\n"
    knot.write(f"db 5 CNAME host-a\n{hosts}", ttl=5, negative_ttl=60)
    one = host(knot)
    first = await one.next()
    knot.write(f"db 5 CNAME host-b\n{hosts}", ttl=5, negative_ttl=60)
    clock = asyncio.get_running_loop().time
    began = clock()

    second = await one.next()

    assert addresses(first) == ["10.0.0.1:5432"]
    assert addresses(second) == ["10.0.0.2:5432"]
    assert clock() - began < 6


@pytest.mark.parametrize("zone", ["", "db TXT nothing", "db CNAME gone"])
async def test_plain_name_without_addresses(knot: KnotServer, zone: str) -> None:
    """NXDOMAIN, NODATA and a CNAME to a name that does not exist are valid empty answers."""
    knot.write(zone)

    assert await host(knot).next() == Answer(())


async def test_plain_name_with_200_addresses(knot: KnotServer) -> None:
    """They do not fit into a datagram, so they come over TCP, all of them, every time."""
    knot.write("\n".join(f"db A 10.0.1.{i}\ndb AAAA fd00::1:{i:x}" for i in range(200)))
    one = host(knot)

    answers = [await one.next() for _ in range(2)]

    assert len(answers[0].servers) == 400
    assert answers[0] == answers[1]


async def test_plain_name_in_no_zone_is_a_failure(knot: KnotServer) -> None:
    """REFUSED is no empty answer."""
    with pytest.raises(SourceError, match=r"A of db\.elsewhere\.: REFUSED from 127"):
        await host(knot, "db.elsewhere").next()


@pytest.mark.parametrize("make", [source, host])
async def test_outage_is_a_failure_and_its_end_recovers(
    knot: KnotServer, make: Callable[[KnotServer], DnsSource]
) -> None:
    """While the server is down every answer is a failure; when it is back the next answer is complete."""
    knot.write("_redis._tcp SRV 0 1 6379 db\ndb A 10.0.0.1\ndb AAAA fd00::1")
    one = make(knot)
    before = await one.next()
    knot.stop()
    for _ in range(2):
        with pytest.raises(SourceError, match="from 127"):
            await one.next()
    knot.start()

    after = await one.next()

    assert before == after
    assert len(after.servers) == 2
