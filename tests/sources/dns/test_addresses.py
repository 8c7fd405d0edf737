"""The source of a plain name: its addresses, with a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from dns.nameserver import Do53Nameserver

from clb_discovery.errors import SourceError, UnusableError, UsageError
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import ALL_MEMBERS, Unread
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.answer import JITTER
from clb_discovery.sources.dns.resolvers import Resolvers
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import SOA, Always, shown

NAME = "db.example"
QUESTIONS = [(f"{NAME}.", "A"), (f"{NAME}.", "AAAA")]
PORT = 5432


def source(
    server: FakeDns,
    *,
    families: tuple[bool, ...] = (True, False),
    min_ttl: float = 0.05,
    max_ttl: float = 60.0,
    lifetime: float = 0.5,
    linger: float | None = None,
) -> AddressSource:
    """Build a source with short time-outs and no jitter."""
    resolvers = Resolvers([server.address], lifetime=lifetime)
    return AddressSource(NAME, PORT, resolvers, min_ttl, max_ttl, families=families, linger=linger, rng=Always(0.0))


def serve(server: FakeDns, *addresses: str, ttl: int = 60) -> None:
    """Let the name have these addresses and no others."""
    for question, kind in QUESTIONS:
        some = [one for one in addresses if (":" in one) is (kind == "AAAA")]
        lines = [f"{NAME}. {ttl} {kind} {one}" for one in some]
        server.replies[question, kind] = Reply(lines, authority=[] if some else [SOA])


async def test_each_address_is_a_real_server() -> None:
    """Addresses of both families are real servers at the port, with priority 0, and share equally."""
    async with FakeDns() as server:
        serve(server, "10.0.0.2", "10.0.0.1", "fd00::1")
        one = source(server)

        answer = await one.next()

    assert one.name == "dns:db.example:5432"
    assert shown(answer) == ["0 1 10.0.0.1:5432", "0 1 10.0.0.2:5432", "0 1 [fd00::1]:5432"]
    assert (answer.unread, answer.left_out, answer.note) == ((), (), None)


async def test_order_of_records_does_not_matter() -> None:
    """Servers rotate the addresses; the answer is the same each time."""
    addresses = [f"10.0.0.{number}" for number in range(1, 6)]
    async with FakeDns() as server:
        one = source(server)
        answers = []
        for turn in range(5):
            serve(server, *addresses[turn:], *addresses[:turn], ttl=0)
            answers.append(await one.next())

    assert answers == [answers[0]] * 5


async def test_only_families_of_the_vips_are_queried() -> None:
    """A service with IPv4 VIPs does not depend on AAAA records."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1")
        server.replies[QUESTIONS[1]] = Reply(silent=True)

        answer = await source(server, families=(True,)).next()

    assert shown(answer) == ["0 1 10.0.0.1:5432"]
    assert {kind for _, kind, _ in server.asked} == {"A"}


@pytest.mark.parametrize(
    ("alias", "far", "address", "negative", "expected"),
    [(1, 60, 60, 60, 1), (60, 1, 60, 60, 1), (60, 60, 1, 60, 1), (60, 60, 60, 1, 1), (60, 50, 40, 60, 40)],
)
async def test_smallest_ttl_of_the_chain_sets_the_wait(
    alias: int, far: int, address: int, negative: int, expected: int
) -> None:
    """The next query comes when the first CNAME, address or negative answer expires, over several answers."""
    async with FakeDns() as server:
        soa = f"example. 60 SOA ns. admin. 1 3600 600 86400 {negative}"
        near = f"{NAME}. {alias} CNAME a.other."
        for owner, kind in QUESTIONS:
            server.replies[owner, kind] = Reply([near])
        server.replies["a.other.", "A"] = Reply([f"a.other. {far} CNAME b.other.", f"b.other. {address} A 10.0.0.1"])
        server.replies["a.other.", "AAAA"] = Reply(authority=[soa])
        one = source(server)
        clock = asyncio.get_running_loop().time
        before = clock()

        answer = await one.next()

        after = clock()
    assert shown(answer) == ["0 1 10.0.0.1:5432"]
    assert one.due is not None
    assert before + expected * (1 - JITTER) <= one.due <= after + expected


async def test_bounds_hold_for_any_ttl() -> None:
    """A TTL of zero counts as --min-ttl, and one of a day as --max-ttl."""
    async with FakeDns() as server:
        clock, waits = asyncio.get_running_loop().time, []
        for ttl in (0, 86400):
            serve(server, "10.0.0.1", "fd00::1", ttl=ttl)
            one = source(server, min_ttl=2.0, max_ttl=20.0)
            await one.next()
            assert one.due is not None
            waits.append(one.due - clock())

    assert 1.5 < waits[0] <= 2
    assert 17 < waits[1] <= 20


@pytest.mark.parametrize("rcode", ["NXDOMAIN", "NOERROR"])
async def test_name_without_addresses_is_an_empty_answer(rcode: str) -> None:
    """NXDOMAIN and NODATA, for both families, are a valid empty answer."""
    async with FakeDns() as server:
        for question in QUESTIONS:
            server.replies[question] = Reply(rcode=rcode, authority=[SOA])

        assert await source(server).next() == Answer(())


FAILURES = [
    (Reply(rcode="SERVFAIL"), "SERVFAIL"),
    (Reply(rcode="REFUSED"), "REFUSED"),
    (Reply(garbage=True), "no answer"),
    (Reply(silent=True), "no answer"),
    (Reply(truncated=True, truncated_tcp=True), "truncated even over TCP"),
]


@pytest.mark.parametrize(("reply", "cause"), FAILURES)
async def test_failure_of_both_families_is_a_failure(reply: Reply, cause: str) -> None:
    """Without any answer the round fails, with the cause, the server and the command that repeats the query."""
    async with FakeDns() as server:
        for question in QUESTIONS:
            server.replies[question] = reply

        with pytest.raises(SourceError) as caught:
            await source(server).next()

    message = str(caught.value)
    assert message.startswith(f"A of {NAME}.: ")
    assert cause in message
    assert f"dig @127.0.0.1 -p {server.port} {NAME} A" in message
    assert message.isascii()
    assert len(message) < 600


@pytest.mark.parametrize(("reply", "cause"), FAILURES)
@pytest.mark.parametrize("failing", [0, 1], ids=["A", "AAAA"])
async def test_failure_of_one_family_leaves_the_other(reply: Reply, cause: str, failing: int) -> None:
    """The family that answers counts; the other keeps its real servers, and a note has the cause."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1", "fd00::1")
        server.replies[QUESTIONS[failing]] = reply

        answer = await source(server).next()

    assert [str(one) for one in answer.servers] == [["[fd00::1]:5432"], ["10.0.0.1:5432"]][failing]
    assert answer.unread == (Unread(ALL_MEMBERS, PORT, 0, 1, failing == 0),)
    assert f"previous ones are kept: {QUESTIONS[failing][1]} of {NAME}.: " in str(answer.note)
    assert cause in str(answer.note)


async def test_failure_beside_an_empty_family_is_a_failure() -> None:
    """A family without records does not mean that the other one has none."""
    async with FakeDns() as server:
        serve(server)
        server.replies[QUESTIONS[1]] = Reply(rcode="SERVFAIL")

        with pytest.raises(SourceError, match=r"AAAA of db\.example\.: SERVFAIL"):
            await source(server).next()


async def test_silent_family_delays_the_other_once() -> None:
    """It is queried again in the background, so changes of the other family are seen by their TTL."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1", ttl=0)
        server.replies[QUESTIONS[1]] = Reply(silent=True)
        one = source(server, lifetime=0.5)
        await one.next()
        clock = asyncio.get_running_loop().time
        began = clock()
        for number in range(2, 6):
            serve(server, f"10.0.0.{number}", ttl=0)
            server.replies[QUESTIONS[1]] = Reply(silent=True)
            assert shown(await one.next()) == [f"0 1 10.0.0.{number}:5432"]
        assert clock() - began < 4 * 0.5


@pytest.mark.parametrize("wrong", [Reply(rcode="NXDOMAIN"), Reply([f"{NAME}. 0 A 10.0.0.1"])], ids=["none", "fewer"])
async def test_another_server_over_tcp_takes_no_records_away(wrong: Reply) -> None:
    """If the server that has answered is silent over TCP, the next one adds to its answer at most, and stays the next.

    With a TTL of 0 an answer over UDP may be a part, so it is queried over TCP, too.
    """
    addresses = [f"10.0.0.{number}" for number in range(1, 5)]
    async with FakeDns() as first, FakeDns() as second:
        serve(first, *addresses, ttl=0)
        first.replies[QUESTIONS[0]].tcp_silent = True
        second.replies[QUESTIONS[0]] = wrong
        resolvers = Resolvers([first.address, second.address], lifetime=4.0)
        one = AddressSource(NAME, PORT, resolvers, 0.05, 0.05, families=(True,), rng=Always(0.0))
        answers = [await one.next() for _ in range(4)]

    assert [shown(answer) for answer in answers] == [[f"0 1 {address}:{PORT}" for address in addresses]] * 4
    assert all("may be incomplete" in str(answer.note) for answer in answers)


@pytest.mark.parametrize("wrong", [Reply(rcode="NXDOMAIN"), Reply([f"{NAME}. 0 A 10.0.0.1"])], ids=["none", "fewer"])
async def test_another_server_takes_no_records_away_when_tcp_ends(wrong: Reply) -> None:
    """The first server still answers over UDP, so what the next one lacks is a failure of TCP, and no answer."""
    addresses = [f"10.0.0.{number}" for number in range(1, 5)]
    async with FakeDns() as first, FakeDns() as second:
        serve(first, *addresses, ttl=0)
        second.replies[QUESTIONS[0]] = wrong
        resolvers = Resolvers([first.address, second.address], lifetime=2.0)
        one = AddressSource(NAME, PORT, resolvers, 0.05, 0.05, families=(True,), rng=Always(0.0))
        assert len((await one.next()).servers) == 4
        first.replies[QUESTIONS[0]].tcp_silent = True
        for _ in range(2):
            with pytest.raises(SourceError, match="only another DNS server responds over TCP"):
                await one.next()
        first.replies[QUESTIONS[0]].silent = True
        assert len((await one.next()).servers) < 4


@pytest.mark.parametrize("reply", [Reply(rcode="SERVFAIL"), Reply(silent=True)], ids=["SERVFAIL", "silence"])
async def test_first_query_after_an_outage_counts(reply: Reply) -> None:
    """While nothing is known each try waits for an answer, so the first one after the outage has it."""
    async with FakeDns() as server:
        for question in QUESTIONS:
            server.replies[question] = reply
        one = source(server, min_ttl=30.0)
        for _ in range(3):
            with pytest.raises(SourceError):
                await one.next()
        serve(server, "10.0.0.1", "fd00::1")

        async with asyncio.timeout(5):
            answer = await one.next()

    assert len(answer.servers) == 2


async def test_hasten_queries_both_families() -> None:
    """The next answer comes from queries that were sent after the call."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1", "fd00::1")
        one = source(server)
        await one.next()
        serve(server, "10.0.0.2", "fd00::2")
        one.hasten()

        async with asyncio.timeout(5):
            answer = await one.next()

    assert shown(answer) == ["0 1 10.0.0.2:5432", "0 1 [fd00::2]:5432"]


async def test_each_family_is_queried_by_its_own_ttl() -> None:
    """A name with A records of a short TTL does not query its missing AAAA records as often."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1", ttl=0)
        one = source(server)
        for _ in range(5):
            await one.next()

    kinds = [kind for _, kind, protocol in server.asked if protocol == "udp" or kind == "AAAA"]
    assert kinds.count("AAAA") == 1


async def test_names_are_shared_by_ports() -> None:
    """Two services on the same name at different ports send one query for each family."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1")
        resolvers = Resolvers([server.address])
        sources = [AddressSource(NAME, port, resolvers) for port in (80, 443)]

        answers = await asyncio.gather(*(one.next() for one in sources))

    assert [shown(answer) for answer in answers] == [["0 1 10.0.0.1:80"], ["0 1 10.0.0.1:443"]]
    assert len(server.asked) == 2


async def test_truncated_answer_is_asked_over_tcp() -> None:
    """An answer that does not fit into a datagram is complete, and then queried over TCP first."""
    addresses = [f"10.0.1.{number}" for number in range(200)]
    async with FakeDns() as server:
        serve(server, *addresses, ttl=1)
        server.replies[QUESTIONS[0]].truncated = True
        one = source(server, families=(True,))
        answers = [await one.next() for _ in range(2)]

    assert [len(answer.servers) for answer in answers] == [200, 200]
    assert [protocol for _, _, protocol in server.asked] == ["udp", "tcp", "tcp"]


async def test_truncated_without_tcp_is_a_failure() -> None:
    """Truncation by a server without TCP is a failure, not a short pool."""
    async with FakeDns(tcp=False) as server:
        server.replies[QUESTIONS[0]] = Reply(truncated=True)

        with pytest.raises(SourceError, match=r"\(TCP\), after a UDP answer that it marks as truncated"):
            await source(server, families=(True,)).next()


async def test_answer_that_is_cut_without_a_mark_is_whole() -> None:
    """As Consul does: three of twenty addresses over UDP, with TTL 0 and without TC. All of them count."""
    async with FakeDns() as server:
        serve(server, *(f"10.0.0.{number}" for number in range(1, 21)), ttl=0)
        server.replies[QUESTIONS[0]].udp_keeps = 3

        answer = await source(server, families=(True,)).next()

    assert len(answer.servers) == 20


async def test_cut_answer_without_tcp_counts_with_a_note() -> None:
    """Without TCP there is no better answer than that over UDP."""
    async with FakeDns(tcp=False) as server:
        serve(server, "10.0.0.1", ttl=0)

        answer = await source(server, families=(True,)).next()

    assert shown(answer) == ["0 1 10.0.0.1:5432"]
    assert "may be incomplete" in str(answer.note)


async def test_search_domains_do_not_apply(tmp_path: Path) -> None:
    """A name is absolute, whatever resolv.conf lists, and whether or not it ends in a dot."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch example other\noptions ndots:5\n")
    async with FakeDns() as server:
        server.replies["db.", "A"] = Reply(["db. 60 A 10.0.0.1"])
        for name in ("db", "db."):
            resolvers = Resolvers(resolv_conf=conf)
            resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port)]
            answer = await AddressSource(name, PORT, resolvers, families=(True,)).next()
            assert shown(answer) == ["0 1 10.0.0.1:5432"]

    assert {owner for owner, _, _ in server.asked} == {"db."}


async def test_hosts_file_does_not_apply() -> None:
    """As for the targets of SRV records, only DNS is queried: even for localhost."""
    async with FakeDns() as server:
        server.replies["localhost.", "A"] = Reply(["localhost. 60 A 10.0.0.7"])

        answer = await AddressSource("localhost", 80, Resolvers([server.address]), families=(True,)).next()

    assert shown(answer) == ["0 1 10.0.0.7:80"]


async def test_unusable_address_is_left_out() -> None:
    """An IPv4-mapped AAAA record is no IPv6 server; alone it is a failure, with the fix."""
    async with FakeDns() as server:
        serve(server, "10.0.0.1", "::ffff:10.0.0.2")
        answer = await source(server).next()
        serve(server, "::ffff:10.0.0.2")
        with pytest.raises(UnusableError, match=r"name db\.example\. has ::ffff:10\.0\.0\.2 as AAAA record; publish"):
            await source(server).next()

    assert shown(answer) == ["0 1 10.0.0.1:5432"]
    assert [one.value for one in answer.left_out] == [f"name {NAME}."]


@pytest.mark.parametrize(
    "reply", [Reply([f"{NAME}. 60 CNAME {NAME}."]), Reply([f"{NAME}. 60 CNAME a.example."])], ids=["itself", "endless"]
)
async def test_endless_cnames_are_a_failure(reply: Reply) -> None:
    """A loop ends with an error, and not never."""
    async with FakeDns() as server:
        for question in QUESTIONS:
            server.replies[question] = reply
        for kind in ("A", "AAAA"):
            server.replies["a.example.", kind] = Reply(["a.example. 60 CNAME db.example."])

        with pytest.raises(SourceError, match=r"A of db\.example\.: "):
            await source(server).next()


async def test_server_that_varies_its_answers_is_recognised() -> None:
    """Addresses of a server that returns eight at random of twenty linger, and those of a family that fails stay."""
    everything = [f"10.0.0.{number}" for number in range(1, 21)] + [f"fd00::{number:x}" for number in range(1, 21)]
    async with FakeDns() as server:
        one = source(server, min_ttl=0.01, linger=60.0)
        for turn in range(6):
            some = [everything[(turn * 8 + place) % 20 + family] for place in range(8) for family in (0, 20)]
            serve(server, *some, ttl=0)
            answer = await one.next()
        assert {str(one) for one in answer.servers} == {
            f"[{text}]:5432" if ":" in text else f"{text}:5432" for text in everything
        }
        server.replies[QUESTIONS[1]] = Reply(rcode="SERVFAIL")

        answer = await one.next()

    assert len([one for one in answer.servers if ":" not in str(one)[:4]]) >= 8
    assert answer.unread == (Unread(ALL_MEMBERS, PORT, 0, 1, is_ipv4=False),)
    assert not [one for one in answer.servers if str(one).startswith("[")], "the guard keeps all of that family"
    assert answer.out == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "has no name"),
        (".", "has no name"),
        ("a..b", "empty"),
        ("a" * 64 + ".example", "label"),
        ("a.\u001b.example", "not printable"),
        ("10.0.0.1", "is an IP address"),
        ("10.0.0.1.", "is an IP address"),
        ("fd00::1", "is an IP address"),
        ("[fd00::1]", "is an IP address"),
    ],
)
def test_bad_names_are_refused(name: str, words: str) -> None:
    """The message has the option, the name and an example."""
    with pytest.raises(UsageError) as caught:
        AddressSource(name, PORT, Resolvers(["127.0.0.1"]))

    message = str(caught.value)
    assert message.startswith(f"--dns {name!r}: ")
    assert words in message
    assert "give a name and a port, such as db.example.com:5432" in message
    assert message.isprintable()


async def test_names_of_other_scripts_are_queried_in_idna() -> None:
    """As for --srv."""
    async with FakeDns() as server:
        server.replies["xn--bcher-kva.example.", "A"] = Reply(["xn--bcher-kva.example. 60 A 10.0.0.1"])

        answer = await AddressSource("bücher.example", 80, Resolvers([server.address]), families=(True,)).next()

    assert shown(answer) == ["0 1 10.0.0.1:80"]


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        ((Reply(rcode="NXDOMAIN"), Reply(rcode="NXDOMAIN")), "the name does not exist (NXDOMAIN); is it right"),
        ((Reply(), Reply()), "the name exists, but has no A or AAAA record"),
        ((Reply(), Reply([f"{NAME}. 60 AAAA fd00::1"])), "the name has AAAA records only, and no VIP is of their"),
    ],
    ids=["NXDOMAIN", "NODATA", "other family"],
)
async def test_reason_of_an_empty_answer(replies: tuple[Reply, Reply], why: str) -> None:
    """`check` shows why there is no server, also if the name has addresses of a family without a VIP."""
    async with FakeDns() as server:
        server.replies.update(zip(QUESTIONS, replies, strict=True))
        one = source(server, families=(True,))
        assert await one.next() == Answer(())

        assert str(await one.why_empty()).startswith(why)
