"""Old and unusual servers: without EDNS, without TCP, with answers to another query."""

from __future__ import annotations

import asyncio

import dns.message
import pytest

from clb_discovery.errors import SourceError
from clb_discovery.model.servers import Unread
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SOA, SRV, records, shown, source


class Recording(FakeDns):
    """Records whether each query had EDNS."""

    def __init__(self) -> None:
        super().__init__()
        self.edns: list[bool] = []

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Answer as the base class does."""
        self.edns.append(dns.message.from_wire(wire).edns >= 0)
        return super().respond(wire, protocol)


@pytest.mark.parametrize("rcode", ["FORMERR", "NOTIMP"])
async def test_server_that_does_not_know_edns_is_asked_without(rcode: str) -> None:
    """After FORMERR or NOTIMP the query is repeated without EDNS, once for all queries of all sources."""
    async with Recording() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."), edns=rcode)
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"], edns=rcode)
        server.replies["a.example.", "AAAA"] = Reply(authority=[SOA], edns=rcode)
        resolvers = Resolvers([server.address])

        answers = [await SrvSource(NAME, resolvers).next() for _ in range(2)]

    assert [shown(answer) for answer in answers] == [["0 1 10.0.0.1:80"]] * 2
    assert server.edns == [True] + [False] * (len(server.edns) - 1)


async def test_server_that_drops_edns_is_asked_without() -> None:
    """A server that ignores queries with EDNS is queried without it the second time, and from then on at once."""
    async with Recording() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."), edns_silent=True)
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"], edns_silent=True)
        resolvers = Resolvers([server.address], lifetime=1.0)

        answers = [await SrvSource(NAME, resolvers, families=(True,)).next() for _ in range(2)]

    assert [shown(answer) for answer in answers] == [["0 1 10.0.0.1:80"]] * 2
    assert server.edns == [True] + [False] * (len(server.edns) - 1)


async def test_lost_answer_does_not_cost_edns() -> None:
    """A server that answered with EDNS before is queried with EDNS again after silence."""
    async with Recording() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        one = source(server)
        await one.next()
        server.replies[SRV] = Reply(silent=True)
        one.hasten()
        with pytest.raises(SourceError, match="no answer"):
            await one.next()

    assert all(server.edns)


async def test_error_that_has_nothing_to_do_with_edns_is_not_remembered() -> None:
    """FORMERR with and without EDNS is an error, and the next query has EDNS again."""
    async with Recording() as server:
        server.replies[SRV] = Reply(rcode="FORMERR")
        one = source(server)
        for _ in range(2):
            with pytest.raises(SourceError, match="FORMERR"):
                await one.next()

    assert server.edns == [True, False] * 2


async def test_truncated_answer_without_edns_is_queried_over_tcp() -> None:
    """Without EDNS answers are truncated at 512 bytes, and TCP has all of them."""
    async with FakeDns() as server:
        every = records(*(f"0 1 {port} a.example." for port in range(1, 101)))
        server.replies[SRV] = Reply(every, additional=["a.example. 60 A 10.0.0.1"], edns="FORMERR", truncated=True)

        answer = await source(server).next()

    assert len(answer.servers) == 100


@pytest.mark.parametrize(
    "reply",
    [
        Reply([f"{NAME}. 60 TXT here"]),
        Reply([f"{NAME}. 60 A 10.0.0.1"]),
        Reply(["_other._tcp.example. 60 SRV 0 1 80 a.example."]),
        Reply([f"{NAME}. 60 SRV \\# 9 000000010050016100"], only_class="CH"),
        Reply(authority=["example. 60 NS ns.example."]),
    ],
    ids=["type", "address", "owner", "class", "referral"],
)
async def test_answer_to_something_else_is_a_failure(reply: Reply) -> None:
    """A NOERROR answer with only unrelated records, or a referral, is an error and does not mean "none"."""
    async with FakeDns() as server:
        server.replies[SRV] = reply

        with pytest.raises(SourceError, match=r"only records that were not queried|a referral"):
            await source(server).next()


async def test_empty_answer_of_a_server_that_cannot_know_is_a_failure() -> None:
    """Without a zone and without recursion "nothing" is no answer, as for glibc, so the next server is queried."""
    async with FakeDns() as lame, FakeDns() as good:
        lame.replies[SRV] = Reply(recursion=False)
        good.replies[SRV] = Reply(records("0 1 80 a.example."), additional=["a.example. 60 A 10.0.0.1"])

        with pytest.raises(SourceError, match="an empty answer of a server that neither has the zone nor resolves"):
            await source(lame).next()
        both = Resolvers([lame.address, good.address], lifetime=1.0)
        assert shown(await SrvSource(NAME, both, families=(True,)).next()) == ["0 1 10.0.0.1:80"]
        lame.replies[SRV] = Reply(recursion=False, authority=[SOA])
        assert (await source(lame).next()).servers == ()


async def test_error_explains_why_tcp_was_used() -> None:
    """If TCP fails after the server itself made it necessary, the error explains that."""
    async with FakeDns(tcp=False) as server:
        server.replies[SRV] = Reply(truncated=True)

        with pytest.raises(
            SourceError, match=r"\(TCP\), after a UDP answer that it marks as truncated; repeat the query with"
        ):
            await source(server).next()


@pytest.mark.parametrize("behaviour", [Reply(rcode="SERVFAIL"), Reply(rcode="REFUSED"), Reply(silent=True)])
async def test_family_without_vips_is_not_asked_for(behaviour: Reply) -> None:
    """A service with IPv4 VIPs only is not affected by AAAA records, valid or not."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        server.replies["a.example.", "AAAA"] = behaviour
        one = SrvSource(NAME, Resolvers([server.address], lifetime=0.4), families=(True,))

        answer = await one.next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    assert (answer.unread, answer.note) == ((), None)
    assert all(kind != "AAAA" for _, kind, _ in server.asked)


async def test_broken_family_keeps_what_it_had() -> None:
    """With VIPs of both families a failing family is unread, and the other counts."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        server.replies["a.example.", "AAAA"] = Reply(rcode="REFUSED")

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    assert answer.unread == (Unread("a.example.", 80, 0, 1, is_ipv4=False),)
    assert answer.left_out == ()


async def test_negative_address_without_soa_is_not_queried_all_the_time() -> None:
    """Twenty targets whose AAAA answers may not be cached are queried some times a minute, not 20 times a second."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records(*(f"0 1 80 a{i}.example." for i in range(20))))
        for i in range(20):
            server.replies[f"a{i}.example.", "A"] = Reply([f"a{i}.example. 60 A 10.0.0.{i}"])
        one = SrvSource(NAME, Resolvers([server.address]), min_ttl=0.2)
        await one.next()
        assert one.due is not None

        assert one.due - asyncio.get_running_loop().time() > 3


async def test_each_question_has_a_port_of_its_own() -> None:
    """Concurrent queries do not share a port, so that answers are as hard to forge as possible."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records(*(f"0 1 80 a{i}.example." for i in range(50))))
        for i in range(50):
            server.replies[f"a{i}.example.", "A"] = Reply([f"a{i}.example. 60 A 10.0.0.{i}"])

        await source(server, lifetime=20.0).next()

    assert len(server.ports) >= 100
    assert len(set(server.ports)) >= len(server.ports) - 5, "the kernel may choose one again by chance"
