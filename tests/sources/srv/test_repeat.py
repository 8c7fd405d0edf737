"""Asking again what is known, by one datagram, and what is asked in full instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from clb_discovery.errors import SourceError
from clb_discovery.sources.srv import source as module
from clb_discovery.sources.srv.lookup import Lookup
from clb_discovery.sources.srv.resolvers import Resolvers
from clb_discovery.sources.srv.source import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SOA, SRV, records, shown

TWO = records("0 1 80 a.example.", "0 1 81 a.example.", ttl=1)
ADDRESS = "a.example. 1 A 10.0.0.1"
AAAA = ("a.example.", "AAAA")


def repeating(server: FakeDns, name: str = NAME, resolvers: Resolvers | None = None) -> SrvSource:
    """Build a source that asks again at once."""
    return SrvSource(name, resolvers or Resolvers([server.address], lifetime=0.4), 0.01, 0.01)


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names that are asked for in full."""
    found: list[str] = []
    find = Lookup.find

    async def note(self: Lookup, name: object, rdtype: object, **options: object) -> object:
        found.append(str(name))
        return await find(self, name, rdtype, **options)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(Lookup, "find", note)
    return found


async def test_same_answer_is_read_once(finds: list[str]) -> None:
    """As long as all is the same, in any order, nothing is asked for in full; the questions are the same."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(TWO, additional=[ADDRESS])
        server.replies[AAAA] = Reply(authority=[SOA])
        one = repeating(server)
        first = await one.next()
        finds.clear()
        before = len(server.asked)
        for turn in (1, -1, 1):
            server.replies[SRV].answer = TWO[::turn]
            assert await one.next() is first

    assert finds == []
    assert server.asked[before:] == [(*SRV, "udp"), (*AAAA, "udp")] * 3


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(TWO[:1], additional=[ADDRESS]), ["0 1 10.0.0.1:80"]),
        (Reply(TWO, additional=["a.example. 1 A 10.0.0.2"]), ["0 1 10.0.0.2:80", "0 1 10.0.0.2:81"]),
        (Reply(authority=[SOA]), []),
        (Reply(rcode="NXDOMAIN", authority=[SOA]), []),
    ],
    ids=["records", "addresses", "nodata", "nxdomain"],
)
async def test_change_is_seen_at_once(reply: Reply, expected: list[str]) -> None:
    """Another answer counts in the round that asked for it."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(TWO, additional=[ADDRESS])
        server.replies[AAAA] = Reply(authority=[SOA])
        one = repeating(server)
        for _ in range(3):
            await one.next()
        server.replies[SRV] = reply

        assert shown(await one.next()) == expected


@pytest.mark.parametrize(
    "reply",
    [Reply(rcode="SERVFAIL"), Reply(garbage=True), Reply(wrong_id=True), Reply(silent=True)],
    ids=["failure", "garbage", "another id", "silence"],
)
async def test_what_is_no_answer_is_an_error(reply: Reply) -> None:
    """What is wrong is told by asking in full; and when all is well again, the same answer counts."""
    async with FakeDns() as server:
        well = server.replies[SRV] = Reply(TWO, additional=[ADDRESS])
        server.replies[AAAA] = Reply(authority=[SOA])
        one = repeating(server)
        before = await one.next()
        server.replies[SRV] = reply
        with pytest.raises(SourceError):
            await one.next()
        server.replies[SRV] = well

        assert await one.next() == before


async def test_failed_round_does_not_count_as_known() -> None:
    """Records that came with addresses that did not are news once these come, though they are the same by then."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(TWO[:1])
        server.replies["a.example.", "A"] = Reply([ADDRESS])
        server.replies[AAAA] = Reply(authority=[SOA])
        one = repeating(server)
        await one.next()
        server.replies[SRV] = Reply(TWO)
        server.replies["a.example.", "A"] = Reply(rcode="SERVFAIL")
        with pytest.raises(SourceError):
            await one.next()
        server.replies["a.example.", "A"] = Reply([ADDRESS])

        assert shown(await one.next()) == ["0 1 10.0.0.1:80", "0 1 10.0.0.1:81"]


async def test_server_of_random_parts_is_asked_once_a_round() -> None:
    """Where asking again was in vain, it is not tried until two answers in full are the same."""
    async with FakeDns() as server:
        along = [ADDRESS, "a.example. 1 AAAA fd00::1"]
        one = repeating(server)
        counts = []
        for turn in range(6):
            server.replies[SRV] = Reply(TWO[turn % 2 :][:1], additional=along)
            before = len(server.asked)
            await one.next()
            counts.append([question[:2] for question in server.asked[before:]].count(SRV))

    assert counts == [1, 2, 1, 1, 1, 1]


async def test_negative_answer_without_ttl_is_asked_in_full(finds: list[str]) -> None:
    """What may not be kept is not asked for twice in a round."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=0), additional=[ADDRESS])
        one = repeating(server)
        await one.next()
        await one.next()

    assert finds.count("a.example.") == 2


@pytest.mark.parametrize(("ndots", "again"), [(1, True), (5, False)])
async def test_search_domains_are_asked_first(tmp_path: Path, ndots: int, *, again: bool, finds: list[str]) -> None:
    """Where the name itself is not what is tried first, each round tries all, so that what appears there is seen."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(TWO, additional=[ADDRESS])
        server.replies[AAAA] = Reply(authority=[SOA])
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver 127.0.0.1\nsearch corp.example\noptions ndots:{ndots}\n")
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = Resolvers([server.address]).current().nameservers
        for name in (f"{NAME}.corp.example.", "a.example.corp.example."):
            server.replies[name, "SRV"] = Reply(rcode="NXDOMAIN", authority=[SOA])
        one = repeating(server, resolvers=resolvers)
        await one.next()
        finds.clear()
        await one.next()

    assert (NAME not in finds) is again


async def test_slow_round_after_a_failed_one_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out of a round ends that round, and not the watch, also after a target has failed."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 80 b.example."))
        server.replies["a.example.", "A"] = Reply(rcode="SERVFAIL")
        server.replies["b.example.", "A"] = Reply(silent=True)
        one = SrvSource(NAME, Resolvers([server.address], lifetime=30.0), 0.01, 0.01)
        with pytest.raises(SourceError, match="SERVFAIL"):
            await one.next()
        monkeypatch.setattr(module, "ROUND_TIMEOUT", 0.2)
        server.replies[SRV] = Reply(silent=True)

        with pytest.raises(SourceError, match="no complete answer"):
            await one.next()
