"""An answer is one reading, and complete, whatever a server returns from one query to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import dns.message
import dns.rcode
import dns.rrset
import pytest
from dns.message import Message, QueryMessage
from dns.rdatatype import SRV
from hypothesis import example, given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.model.address import format_address
from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.memory_dns import InMemory, Only
from tests.support.srv import NAME, SOA, records, shown, source
from tests.support.srv import SRV as QUESTION

TARGETS: Final = "abcde"
ADDRESSES: Final = {target: f"10.0.0.{number}" for number, target in enumerate(TARGETS, 1)}
Records = frozenset[tuple[str, int]]
"""Target and port."""


class SrvAnswer(NamedTuple):
    """One answer for the SRV records."""

    records: Records
    along: frozenset[str]
    """Targets whose address is in the additional section."""


SRV_ANSWER = st.builds(
    SrvAnswer,
    st.frozensets(st.tuples(st.sampled_from(TARGETS), st.integers(80, 82)), max_size=6),
    st.frozensets(st.sampled_from(TARGETS)),
)
A, B, C = (frozenset({(target, 80)}) for target in "abc")
GROWING = [SrvAnswer(frozenset((target, 80) for target in TARGETS[:count]), frozenset()) for count in (1, 2, 3, 4, 5)]
TWO_OF_THREE = [SrvAnswer(A | B | C, frozenset(along)) for along in ("ab", "bc", "ac", "ab", "bc")]


class Fickle(InMemory):
    """Returns the next of some answers to each query for the SRV records, and a fixed address to all others."""

    def __init__(self, answers: Sequence[SrvAnswer], failing: frozenset[str]) -> None:
        super().__init__()
        self._answers = answers
        self._failing = failing
        self.given: list[Records] = []

    def respond(self, request: QueryMessage) -> Message:
        """Return the next answer for the SRV records, or a fixed address."""
        response = dns.message.make_response(request, recursion_available=True)
        question = request.question[0]
        if question.rdtype == SRV:
            chosen = self._answers[min(len(self.given), len(self._answers) - 1)]
            self.given.append(chosen.records)
            texts = [f"1 1 {port} {target}.example." for target, port in sorted(chosen.records)]
            if texts:
                response.answer.append(dns.rrset.from_text_list(question.name, 1, "IN", "SRV", texts))
            for target in chosen.along - self._failing:
                owner = f"{target}.example."
                response.additional.append(dns.rrset.from_text(owner, 1, "IN", "A", ADDRESSES[target]))
            return response
        target = question.name.to_text()[0]
        if target in self._failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        else:
            response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", ADDRESSES[target]))
        return response


def is_whole(answer: Answer, reading: Records, failing: frozenset[str]) -> bool:
    """Return whether an answer is exactly what this reading requires."""
    had = {(one, port) for one, port in reading if one not in failing}
    return {(format_address(server.address), server.port) for server in answer.servers} == {
        (ADDRESSES[target], port) for target, port in had
    } and {(one.identity[0], one.port) for one in answer.unread} == reading - had


@given(st.lists(SRV_ANSWER, min_size=1, max_size=12), st.frozensets(st.sampled_from(TARGETS), max_size=2))
@example([SrvAnswer(one, frozenset()) for one in (A, B, C, A, B, C, A, B, C)], frozenset())
@example(GROWING, frozenset())
@example(TWO_OF_THREE, frozenset())
@example(TWO_OF_THREE, frozenset("b"))
def test_answer_is_one_reading(answers: list[SrvAnswer], failing: frozenset[str]) -> None:
    """Each answer has all records of one response of its round, with their available addresses, and no others."""
    asyncio.run(_each_answer_is_one_reading(answers, failing))


async def _each_answer_is_one_reading(answers: Sequence[SrvAnswer], failing: frozenset[str]) -> None:
    server = Fickle(answers, failing)
    one = SrvSource(NAME, Only(server), 0.0001, 0.0001, families=(True,), linger=0)
    for _ in range(6):
        before = max(0, len(server.given) - 3)
        answer = None
        with suppress(SourceError):
            answer = await one.next()
        readings = server.given[before:]
        if answer is None:
            assert any(reading and {target for target, _ in reading} <= failing for reading in readings)
        else:
            assert any(is_whole(answer, reading, failing) for reading in readings)


async def test_additional_section_never_makes_a_pool_smaller() -> None:
    """A target with three addresses, of which two others are added each time, has three from the second round on."""
    async with FakeDns() as server:
        server.replies["a.example.", "AAAA"] = Reply(authority=[SOA])
        every = [f"a.example. 60 A 10.0.0.{number}" for number in (1, 2, 3)]
        server.replies["a.example.", "A"] = Reply(every)
        one = source(server, min_ttl=0.01)
        sizes = []
        for number in range(6):
            along = [*every[number % 3 :], *every[: number % 3]][:2]
            server.replies[QUESTION] = Reply(records("0 1 80 a.example.", ttl=0), additional=along)
            sizes.append(len(shown(await one.next())))

    assert sizes[1:] == [3] * 5


async def test_silent_target_does_not_hold_up_the_others() -> None:
    """A target without an answer delays a round once; after that changes of others count at their TTL."""
    async with FakeDns() as server:
        server.replies[QUESTION] = Reply(records("0 1 80 a.example.", "0 1 80 b.example.", ttl=0))
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        server.replies["b.example.", "A"] = Reply(silent=True)
        one = SrvSource(NAME, Resolvers([server.address], lifetime=1.0), 0.02, 0.05, families=(True,))
        loop = asyncio.get_running_loop()
        await one.next()
        took = []
        for port in range(81, 91):
            server.replies[QUESTION] = Reply(records(f"0 1 {port} a.example.", "0 1 80 b.example.", ttl=0))
            began = loop.time()
            assert shown(await one.next()) == [f"0 1 10.0.0.1:{port}"]
            took.append(loop.time() - began)
        server.replies["b.example.", "A"] = Reply(["b.example. 60 A 10.0.0.2"])
        async with asyncio.timeout(5):
            while len((await one.next()).servers) < 2:
                pass

    assert sorted(took)[-3] < 0.5  # of ten, each of which it would delay by a second


@pytest.mark.parametrize("fails", [False, True])
async def test_hastened_source_queries_again(fails: bool) -> None:
    """An answer after `hasten` comes from queries that were sent after it, even if the first of them fails."""
    async with FakeDns() as server:
        server.replies[QUESTION] = Reply(records("0 1 80 a.example."), additional=["a.example. 60 A 10.0.0.1"])
        server.replies["a.example.", "AAAA"] = Reply(authority=[SOA])
        one = source(server)
        await one.next()
        waiting = asyncio.create_task(one.next())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        before = len(server.asked)
        if fails:
            server.replies[QUESTION] = Reply(rcode="SERVFAIL")

        one.hasten()

        async with asyncio.timeout(2):
            if fails:
                with pytest.raises(SourceError):
                    await waiting
                server.replies[QUESTION] = Reply(records("0 1 81 a.example."))
                server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
                assert shown(await one.next()) == ["0 1 10.0.0.1:81"]
            else:
                assert shown(await waiting) == ["0 1 10.0.0.1:80"]
        assert {question[:2] for question in server.asked[before:]} >= {QUESTION, ("a.example.", "AAAA")}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.next(), 0.1)


async def test_source_that_is_hastened_meanwhile_queries_once_more() -> None:
    """The answer of the round that was under way comes first, and tells that it was asked for before `hasten`."""
    async with FakeDns() as server:
        server.replies[QUESTION] = Reply(records("0 1 80 a.example.", "0 1 80 b.example."))
        server.replies["a.example.", "A"] = Reply(silent=True)
        server.replies["b.example.", "A"] = Reply(["b.example. 60 A 10.0.0.1"])
        one = source(server, lifetime=0.4)
        asking = asyncio.create_task(one.next())
        await asyncio.sleep(0.1)
        hastened = asyncio.get_running_loop().time()
        one.hasten()

        early = await asking
        server.replies[QUESTION] = Reply(records("0 1 81 b.example."))
        server.replies["b.example.", "A"] = Reply(["b.example. 60 A 10.0.0.2"])
        fresh = await one.next()

    assert shown(early) == ["0 1 10.0.0.1:80"]
    assert shown(fresh) == ["0 1 10.0.0.2:81"]
    assert early.asked < hastened <= fresh.asked


async def test_an_answer_is_as_old_as_its_oldest_part() -> None:
    """Records within their TTL are not queried again with addresses that have expired."""
    async with FakeDns() as server:
        server.replies[QUESTION] = Reply(records("0 1 80 a.example.", ttl=60))
        server.replies["a.example.", "A"] = Reply(["a.example. 0 A 10.0.0.1"])
        one = SrvSource(NAME, Resolvers([server.address]), 0.05, families=(True,))
        first, second = await one.next(), await one.next()
        assert [question[:2] for question in server.asked].count(QUESTION) == 2  # before and after the first addresses
        assert first.asked < second.asked < asyncio.get_running_loop().time() - 0.05
        one.hasten()
        hastened = asyncio.get_running_loop().time()
        assert (await one.next()).asked >= hastened


async def test_records_are_read_again_when_none_is_usable_any_more() -> None:
    """Targets whose queries all fail at once may have left the zone, whatever the TTL of the records is."""
    async with FakeDns() as server:
        server.replies[QUESTION] = Reply(records("0 1 80 old.example."))
        server.replies["old.example.", "A"] = Reply(["old.example. 0 A 10.0.0.1"])
        one = SrvSource(NAME, Resolvers([server.address]), 0.05, families=(True,))
        await one.next()
        server.replies["old.example.", "A"] = Reply(rcode="SERVFAIL")
        server.replies[QUESTION] = Reply(records("0 1 80 new.example."))
        server.replies["new.example.", "A"] = Reply(["new.example. 60 A 10.0.0.2"])

        assert shown(await one.next()) == ["0 1 10.0.0.2:80"]
