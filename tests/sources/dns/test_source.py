"""The SRV source with a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
from collections import Counter

import dns.name
import pytest

from clb_discovery.errors import SourceError, UnusableError, UsageError
from clb_discovery.model.answer import Answer, Failure, Outcome
from clb_discovery.model.servers import Unread
from clb_discovery.sources.dns.lookup import MAX_CNAMES
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import MAX_READS, SrvSource
from clb_discovery.sources.follow import follow
from tests.support.fake_dns import FakeDns, Reply
from tests.support.pace import patient
from tests.support.process import free_port
from tests.support.srv import NAME, SOA, SRV, records, shown, source


async def failure(from_source: SrvSource) -> str:
    """Return the message of the SourceError that `next` raises."""
    with pytest.raises(SourceError) as caught:
        await from_source.next()
    message = str(caught.value)
    record = from_source.name.removeprefix("srv:")
    assert message.partition("; repeat the query with")[0].count(record) == 1  # the line has it once
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 600
    return message


BAD_REPLIES = [
    (Reply(rcode="SERVFAIL"), "SERVFAIL"),
    (Reply(rcode="REFUSED"), "REFUSED"),
    (Reply(rcode="FORMERR"), "FORMERR"),
    (Reply(rcode="NOTIMP"), "NOTIMP"),
    (Reply(rcode="YXDOMAIN"), "DNAME"),
    (Reply(wrong_id=True), "no answer"),
    (Reply(garbage=True), "no answer"),
    (Reply(silent=True), "no answer"),
    (Reply(truncated=True, truncated_tcp=True), "truncated even over TCP"),
    (Reply(truncated=True, silent=True), "no answer"),
]


@pytest.mark.parametrize(("reply", "cause"), BAD_REPLIES)
async def test_bad_reply_for_the_records_is_a_failure(reply: Reply, cause: str) -> None:
    """An error, silence or a malformed message for the SRV records is a failure, with cause, server and command."""
    async with FakeDns() as server:
        server.replies[SRV] = reply

        message = await failure(source(server))

    assert cause in message
    assert f"dig @127.0.0.1 -p {server.port} {NAME} SRV" in message


@pytest.mark.parametrize(("reply", "cause"), BAD_REPLIES)
@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_bad_reply_for_one_target_leaves_the_others(reply: Reply, cause: str, kind: str) -> None:
    """An error for one family of one target is reported, that target keeps its last addresses, and the others count."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 80 b.example."))
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        server.replies["b.example.", kind] = reply

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    assert answer.unread == (Unread("b.example.", 80, 0, 1, kind == "A"),)
    assert answer.note is None
    (left_out,) = answer.left_out
    assert left_out.value == "target b.example."
    assert f"its query failed: {kind}: " in left_out.reason
    assert cause in left_out.reason
    assert left_out.reason.isascii()


async def test_target_that_had_addresses_is_kept_and_not_left_out() -> None:
    """Only a target that never had an address is left out; one that had keeps it, with its new weight."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 80 b.example.", ttl=0))
        for number, host in enumerate("ab", 1):
            server.replies[f"{host}.example.", "A"] = Reply([f"{host}.example. 0 A 10.0.0.{number}"])
        one = source(server, min_ttl=0.01)
        await one.next()
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "3 7 80 b.example.", ttl=0))
        server.replies["b.example.", "A"] = Reply(rcode="SERVFAIL")

        answer = await one.next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    assert answer.unread == (Unread("b.example.", 80, 3, 7, is_ipv4=True),)
    assert answer.left_out == ()
    assert "SERVFAIL" in str(answer.note)


async def test_all_targets_failing_is_a_failure() -> None:
    """If the queries of all targets fail there is no answer, and the last known good set stays."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 80 b.example."))
        for host in "ab":
            server.replies[f"{host}.example.", "A"] = Reply(rcode="REFUSED")

        message = await failure(source(server))

    assert "A of a.example.: REFUSED" in message


async def test_truncated_without_tcp_is_a_failure() -> None:
    """Truncation by a server without TCP is a failure, not a short pool."""
    async with FakeDns(tcp=False) as server:
        server.replies[SRV] = Reply(truncated=True)

        message = await failure(source(server))

    assert "(TCP)" in message


async def test_recovers_at_once() -> None:
    """After a failure the next call queries without waiting, and a good answer ends the failures."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(rcode="SERVFAIL")
        one = source(server, min_ttl=30.0)
        await failure(one)
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])

        async with asyncio.timeout(5):
            answer = await one.next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]


async def test_follow_hands_failures_and_answers_on() -> None:
    """In the common loop a failing server is a series of failures, then an answer, and never an empty one."""
    seen: list[Outcome] = []
    async with FakeDns() as server:
        server.replies[SRV] = Reply(rcode="REFUSED")

        def emit(outcome: Outcome) -> None:
            seen.append(outcome)
            server.replies[SRV] = Reply(records("0 1 80 a.example."))
            server.replies["a.example.", "AAAA"] = Reply(["a.example. 60 AAAA fd00::1"])

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(follow(source(server), emit), 1.0)

    assert isinstance(seen[0], Failure)
    assert isinstance(seen[-1], Answer)
    assert [len(one.servers) for one in seen if isinstance(one, Answer)] == [1]


@pytest.mark.parametrize("reply", [Reply(rcode="NXDOMAIN", authority=[SOA]), Reply(authority=[SOA])])
async def test_no_records_is_an_answer(reply: Reply) -> None:
    """NXDOMAIN and NODATA of the name mean that there are no servers."""
    async with FakeDns() as server:
        server.replies[SRV] = reply

        answer = await source(server).next()

    assert answer == Answer(())


@pytest.mark.parametrize("reply", [Reply(rcode="NXDOMAIN", authority=[SOA]), Reply(authority=[SOA])])
async def test_target_without_addresses_adds_nothing(reply: Reply) -> None:
    """NXDOMAIN and NODATA of a target leave that target out, and keep the others."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 80 b.example."))
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        server.replies["b.example.", "A"] = reply
        server.replies["b.example.", "AAAA"] = reply

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]


async def test_additional_in_bailiwick_spares_questions() -> None:
    """Additional addresses of targets in the zone are used, family by family; only missing ones are queried."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(
            records("0 1 80 a.example.", "0 1 80 B.sub.Example."),
            additional=["a.example. 60 A 10.0.0.1", "a.example. 60 AAAA fd00::1", "b.SUB.example. 60 A 10.0.0.2"],
        )

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80", "0 1 10.0.0.2:80", "0 1 [fd00::1]:80"]
    assert [question for question in server.asked if question[0] != SRV[0]] == [("b.sub.example.", "AAAA", "udp")]


class Moving(FakeDns):
    """Serves another version of the zone after each answer for the SRV records: host name a then means another host."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.version = 0
        self._most = most
        self._move()

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Answer from this version, and switch to the next one."""
        answer = super().respond(wire, protocol)
        if self.asked[-1][:2] == SRV and self.version < self._most:
            self._move()
        return answer

    def _move(self) -> None:
        self.version += 1
        self.replies[SRV] = Reply(records(f"0 1 {self.version} a.example."))
        self.replies["a.example.", "A"] = Reply([f"a.example. 60 A 10.0.0.{self.version}"])


async def test_zone_that_changes_while_it_is_read_is_read_again() -> None:
    """The port of one version is never combined with the address of another: it would be another service."""
    async with Moving(2) as server:
        assert shown(await source(server).next()) == ["0 1 10.0.0.2:2"]


async def test_zone_that_always_changes_is_read_a_few_times() -> None:
    """Even if the records differ each time, the queries are bounded."""
    async with Moving(1000) as server:
        answer = await source(server).next()

    assert len(answer.servers) == 1
    assert [question[:2] for question in server.asked].count(SRV) == MAX_READS


async def test_unchanged_answer_is_read_once() -> None:
    """While nothing changes each round queries the SRV records once."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."), additional=["a.example. 60 A 10.0.0.1"])
        one = SrvSource(NAME, Resolvers([server.address]), 0.01, 0.01)
        await one.next()
        before = len(server.asked)

        await one.next()

    assert [question[:2] for question in server.asked[before:]] == [SRV, ("a.example.", "AAAA")]


async def test_additional_out_of_bailiwick_is_not_believed() -> None:
    """Additional addresses of targets in other zones are ignored, and queried."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(
            records("0 1 80 a.other.", "0 1 80 a.notexample."),
            additional=["a.other. 60 A 10.6.6.6", "a.notexample. 60 A 10.6.6.6"],
        )
        server.replies["a.other.", "A"] = Reply(["a.other. 60 A 10.0.0.1"])

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    assert ("a.notexample.", "A", "udp") in server.asked


async def test_top_level_owner_makes_no_domain_trusted() -> None:
    """An owner directly under the root does not make every domain its bailiwick."""
    async with FakeDns() as server:
        server.replies["_redis._tcp.", "SRV"] = Reply(
            ["_redis._tcp. 60 SRV 0 1 80 a.other."], additional=["a.other. 60 A 10.6.6.6"]
        )

        answer = await source(server, "_redis._tcp.").next()

    assert answer.servers == ()


async def test_unfinished_cname_of_target_is_followed() -> None:
    """If a server returns only the CNAME its target is queried, over several such answers."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        for kind in ("A", "AAAA"):
            server.replies["a.example.", kind] = Reply(["a.example. 60 CNAME b.other."])
            server.replies["b.other.", kind] = Reply(["b.other. 60 CNAME c.third."])
        server.replies["c.third.", "A"] = Reply(["c.third. 60 A 10.0.0.1"])
        server.replies["c.third.", "AAAA"] = Reply(rcode="NXDOMAIN", authority=[SOA.replace("example.", "third.", 1)])

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]


async def test_unfinished_cname_of_owner_is_followed() -> None:
    """The SRV name itself may be a CNAME, complete in the answer or not; the bailiwick is that of the records."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply([f"{NAME}. 60 CNAME _redis._tcp.other."])
        server.replies["_redis._tcp.other.", "SRV"] = Reply(
            ["_redis._tcp.other. 60 SRV 0 1 80 a.other.", "_redis._tcp.other. 60 SRV 0 1 80 b.example."],
            additional=["a.other. 60 A 10.0.0.1", "b.example. 60 A 10.6.6.6"],
        )

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]


@pytest.mark.parametrize("looped", [False, True])
async def test_endless_cnames_are_a_failure(looped: bool) -> None:
    """A chain of more than eight CNAMEs, or a loop of them, is a failure with this cause."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 c0.example."))
        for i in range(100):
            for kind in ("A", "AAAA"):
                follower = (i + 1) % 3 if looped else i + 1
                server.replies[f"c{i}.example.", kind] = Reply([f"c{i}.example. 60 CNAME c{follower}.example."])

        message = await failure(source(server))

    assert f"more than {MAX_CNAMES} CNAMEs" in message
    assert Counter(kind for _, kind, _ in server.asked)["A"] <= MAX_CNAMES + 1


async def test_loop_inside_one_answer_is_a_failure() -> None:
    """A CNAME loop inside one message is a failure."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        loop = Reply(["a.example. 60 CNAME b.example.", "b.example. 60 CNAME a.example."])
        server.replies["a.example.", "A"] = loop

        message = await failure(source(server))

    assert "chain" in message


async def test_silently_trimmed_answer_is_queried_over_tcp() -> None:
    """TTL 0 over UDP is queried again over TCP, and from then on TCP comes first, so that each answer is complete."""
    async with FakeDns() as server:
        every = records(*(f"0 1 {port} a.example." for port in range(1, 31)), ttl=0)
        server.replies[SRV] = Reply(every, additional=["a.example. 60 A 10.0.0.1"], udp_keeps=16)
        one = source(server, min_ttl=0.01)

        answers = [await one.next() for _ in range(3)]

    assert [len(answer.servers) for answer in answers] == [30, 30, 30]
    assert [protocol for owner, _, protocol in server.asked if owner == SRV[0]] == ["udp", *["tcp"] * 4]


@pytest.mark.parametrize("ttl", [0, 60])
async def test_truncated_answer_is_asked_over_tcp_once(ttl: int) -> None:
    """An answer over TCP after truncation over UDP is not queried over TCP again, whatever its TTL is."""
    async with FakeDns() as server:
        every = records(*(f"0 1 {port} a.example." for port in range(1, 101)), ttl=ttl)
        server.replies[SRV] = Reply(every, additional=["a.example. 60 A 10.0.0.1"], truncated=True)

        answer = await source(server).next()

    assert len(answer.servers) == 100
    assert [protocol for owner, _, protocol in server.asked if owner == SRV[0]] == [
        *("udp", "tcp"),
        "tcp",  # twice, because the answer is new
    ]


async def test_suspect_answer_without_tcp_counts_with_a_note() -> None:
    """If an answer may be trimmed and there is no TCP, the answer over UDP counts, with a note."""
    async with FakeDns(tcp=False) as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=0), additional=["a.example. 9 A 10.0.0.1"])
        one = source(server, min_ttl=0.01)

        answers = [await one.next() for _ in range(3)]

    assert [shown(answer) for answer in answers] == [["0 1 10.0.0.1:80"]] * 3
    assert all("may be incomplete" in str(answer.note) for answer in answers)


async def test_tcp_that_worked_and_fails_is_a_failure() -> None:
    """After TCP had all records, fewer records over UDP do not shrink the pool; the error explains why TCP was used."""
    async with FakeDns() as server:
        every = records(*(f"0 1 {port} a.example." for port in range(1, 31)), ttl=0)
        server.replies[SRV] = Reply(every, additional=["a.example. 0 A 10.0.0.1"], udp_keeps=16)
        one = source(server, min_ttl=0.01)
        assert len((await one.next()).servers) == 30
        server.replies[SRV].tcp_silent = True

        message = await failure(one)

    assert "(TCP)" in message
    assert message.endswith("TCP is used because answers over UDP may be truncated")


async def test_answer_below_the_limit_of_datagrams_needs_no_tcp() -> None:
    """An answer of 917 bytes with a TTL, from a server without TCP, is complete, and has no note."""
    async with FakeDns(tcp=False) as server:
        every = records(*(f"0 1 {port} {'x' * 43}.example." for port in range(1, 14)), ttl=30)
        server.replies[SRV] = Reply(every, additional=[f"{'x' * 43}.example. 9 A 10.0.0.1"])

        answer = await source(server).next()

    assert len(answer.servers) == 13
    assert answer.note is None
    assert {protocol for owner, _, protocol in server.asked if owner == SRV[0]} == {"udp"}


async def test_answer_of_consul_is_queried_over_tcp_whatever_its_ttl() -> None:
    """Consul also trims with `service_ttl`, which gives its answers a TTL: its domain is another mark."""
    name = "_redis._tcp.service.consul"
    async with FakeDns() as server:
        every = [f"{name}. 5 SRV 0 1 {port} a.node.consul." for port in range(1, 31)]
        server.replies[f"{name}.", "SRV"] = Reply(every, udp_keeps=3)
        server.replies["a.node.consul.", "A"] = Reply(["a.node.consul. 5 A 10.0.0.1"])

        answer = await source(server, name).next()

    assert len(answer.servers) == 30


@pytest.mark.parametrize(("ttl", "keeps"), [(60, 850), (0, None)])
async def test_answer_at_the_limit_of_dns_is_a_failure(ttl: int, keeps: int | None) -> None:
    """An answer that fills a message, and differs from a second one or has TTL 0, may lack servers: it is a failure."""
    async with FakeDns() as server:
        every = records(*(f"0 1 {port} {'x' * 52}.{port}." for port in range(1, 856)), ttl=ttl)
        server.replies[SRV] = Reply(every, truncated=True, keeps=keeps)

        message = await failure(source(server, lifetime=patient(10)))  # the fake is slow with 64 kB

    assert "--consul" in message


async def test_answer_that_fills_a_message_and_stays_the_same_is_whole() -> None:
    """An answer at the limit is queried twice each time; with a TTL and without a difference it is complete."""
    async with FakeDns() as server:
        first, middle, last = (f"{'x' * 52}.{name}." for name in ("one", "two", "end"))
        targets = [first, *[middle] * 853, last]
        every = records(*(f"0 1 {port} {target}" for port, target in enumerate(targets, 1)))
        server.replies[SRV] = Reply(every, truncated=True, additional=[f"{first} 60 A 10.0.0.1"])
        server.replies[last, "A"] = Reply([f"{last} 60 A 10.0.0.2"])
        one = SrvSource(NAME, Resolvers([server.address], lifetime=patient(10)), 0.01, 0.01)
        await one.next()
        before = len(server.asked)

        answer = await one.next()

    assert [protocol for owner, _, protocol in server.asked[before:] if owner == SRV[0]] == ["tcp", "tcp"]
    assert shown(answer) == ["0 1 10.0.0.2:855"]


@pytest.mark.parametrize(
    "first",
    [Reply(rcode="SERVFAIL"), Reply(rcode="REFUSED"), Reply(rcode="FORMERR"), Reply(garbage=True), Reply(silent=True)],
)
async def test_next_server_is_asked_when_one_has_no_proper_answer(first: Reply) -> None:
    """A server without an answer costs one query of each round, and the next one in the list is used."""
    async with FakeDns() as bad, FakeDns() as good:
        bad.replies[SRV] = first
        good.replies[SRV] = Reply(records("0 1 80 a.example."), additional=["a.example. 60 A 10.0.0.1"])
        one = SrvSource(NAME, Resolvers([bad.address, good.address]))

        answer = await one.next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    assert bad.asked
    assert {owner for owner, _, _ in bad.asked} == {SRV[0]}
    assert ("a.example.", "AAAA", "udp") in good.asked


async def test_first_server_that_answers_is_believed() -> None:
    """Servers are queried in order: the others get no query while the first answers, even if negatively."""
    async with FakeDns() as first, FakeDns() as second:
        first.replies[SRV] = Reply(rcode="NXDOMAIN", authority=[SOA])
        second.replies[SRV] = Reply(records("0 1 80 a.example."))

        answer = await SrvSource(NAME, Resolvers([first.address, second.address])).next()

    assert answer.servers == ()
    assert second.asked == []


async def test_all_servers_are_named_when_none_has_an_answer() -> None:
    """If every server fails, the error has the cause of each."""
    async with FakeDns() as one, FakeDns() as other:
        one.replies[SRV] = Reply(rcode="SERVFAIL")
        other.replies[SRV] = Reply(rcode="REFUSED")

        message = await failure(SrvSource(NAME, Resolvers([one.address, other.address])))

    assert f"SERVFAIL from 127.0.0.1@{one.port} (UDP), REFUSED from 127.0.0.1@{other.port} (UDP)" in message


@pytest.mark.parametrize(
    ("record", "reason"),
    [("0 1 0 b.example.", "port"), ("0 1 80 10.1.1.2.", "IP address"), ("0 1 80 fd00::1.", "IP address")],
)
async def test_record_that_cannot_be_used_is_left_out(record: str, reason: str) -> None:
    """A record with port 0, or an IP address as target, is reported as in the zone, and the others count."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", record), additional=["a.example. 60 A 10.0.0.1"])

        answer = await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]
    (left_out,) = answer.left_out
    assert left_out.value == f"SRV record '{record}'"
    assert reason in left_out.reason
    assert {owner for owner, _, _ in server.asked} == {SRV[0], "a.example."}


async def test_only_unusable_records_are_a_failure() -> None:
    """If no record can be used the error names the first, no target is queried, and the error is permanent."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 0 a.example."))

        with pytest.raises(UnusableError, match=r"'0 1 0 a\.example\.'"):
            await source(server).next()

    assert len(server.asked) == 1


async def test_mapped_address_is_left_out() -> None:
    """An AAAA record with an IPv4 address is reported; the target's other addresses count."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."))
        server.replies["a.example.", "AAAA"] = Reply(
            ["a.example. 60 AAAA ::ffff:10.0.0.9", "a.example. 60 AAAA fd00::1"]
        )

        answer = await source(server).next()

    assert shown(answer) == ["0 1 [fd00::1]:80"]
    assert "::ffff:10.0.0.9" in str(answer.left_out[0])


async def test_strange_names_are_escaped() -> None:
    """A target made of control characters and shell syntax is escaped and quoted in the one-line error."""
    async with FakeDns() as server:
        target = r"\027[31m\010$\(reboot\)\;`id`.example."
        server.replies[SRV] = Reply(records(f"0 1 80 {target}"))
        server.replies[dns.name.from_text(target).to_text(), "A"] = Reply(rcode="SERVFAIL")

        message = await failure(source(server))

    assert r"\027[31m\010" in message
    assert "'\\027" in message


async def test_server_on_ipv6() -> None:
    """A server can be queried over IPv6, over UDP and TCP."""
    async with FakeDns(host="::1") as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example."), truncated=True)
        server.replies["a.example.", "AAAA"] = Reply(["a.example. 60 AAAA fd00::1"])

        answer = await source(server).next()

    assert shown(answer) == ["0 1 [fd00::1]:80"]


async def test_dead_server_costs_its_timeout_once() -> None:
    """If the first server is dead, the many queries of a round go to the one that answered."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records(*(f"0 1 80 a{i}.example." for i in range(200))))
        for i in range(200):
            server.replies[f"a{i}.example.", "A"] = Reply([f"a{i}.example. 60 A 10.0.0.{i}"])
        one = SrvSource(NAME, Resolvers([f"127.0.0.1:{free_port()}", server.address]))

        async with asyncio.timeout(8):
            answer = await one.next()

    assert len(answer.servers) == 200


def test_name_shows_what_was_given() -> None:
    """The source has the name that the operator wrote."""
    assert SrvSource("_Redis._tcp.Example", Resolvers(["127.0.0.1"])).name == "srv:_Redis._tcp.Example"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a..b", "x" * 64 + ".example", ".".join(["x" * 63] * 4), "a\\", "\\999", "a\n.b"]
)
def test_bad_name_is_wrong_usage(name: str) -> None:
    """Text that is not a DNS name is rejected with its value and an example."""
    with pytest.raises(UsageError, match=r"give a record name such as _redis\._tcp\.example") as caught:
        SrvSource(name, Resolvers(["127.0.0.1"]))

    assert repr(name)[:50] in str(caught.value)


@pytest.mark.parametrize("bounds", [(0.0, 60.0), (-1.0, 60.0), (61.0, 60.0), (float("nan"), 60.0)])
def test_crossed_bounds_are_wrong_usage(bounds: tuple[float, float]) -> None:
    """A minimum wait that is not above 0, or above the maximum, is rejected."""
    with pytest.raises(UsageError, match="--min-ttl"):
        SrvSource(NAME, Resolvers(["127.0.0.1"]), *bounds)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(rcode="NXDOMAIN", authority=[SOA]), "does not exist (NXDOMAIN)"),
        (Reply(authority=[SOA]), "exists, but has no SRV record"),
        (Reply(records("0 0 0 .")), "the target is '.'"),
    ],
)
async def test_reason_of_an_empty_answer(reply: Reply, words: str) -> None:
    """A name that does not exist, one without records, and one that names no server are told apart."""
    async with FakeDns() as server:
        server.replies[SRV] = reply
        one = source(server)
        assert (await one.next()).servers == ()
        assert words in str(await one.why_empty())


async def test_reason_of_an_empty_answer_may_be_an_error() -> None:
    """If the query for it fails, there is no reason."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(rcode="SERVFAIL")
        with pytest.raises(SourceError):
            await source(server).why_empty()
