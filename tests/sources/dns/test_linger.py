"""Servers that vary their answers: how they are recognised, and how long records then stay."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.linger import FORGOTTEN, LEAST, MOST, READINGS, Linger
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SRV

SEEDS = st.integers(0, 2**32 - 1)
PACES = st.sampled_from([1.0, 5.0, 27.0, 60.0])


class Pool:
    """A pool built from readings: the last one and the lingering records."""

    def __init__(self, linger: float | None = None) -> None:
        self.linger = Linger[int, str](linger)
        self.now = 0.0
        self.members: set[int] = set()

    def read(self, present: set[int], after: float) -> set[int]:
        """Take a reading this many seconds after the last one; return the pool."""
        self.now += after
        self.linger.read({number: f"server {number}" for number in present}, self.now)
        self.members = present | set(self.linger.lingering(self.now))
        return self.members


@given(SEEDS, st.sampled_from([1.0, 5.0, 27.0]))
def test_eight_of_twenty_at_random_become_all_twenty(seed: int, pace: float) -> None:
    """AWS Cloud Map's answers are recognised within ten readings, and then the pool grows to all and stays."""
    chance, pool = random.Random(seed), Pool()  # noqa: S311 - a test
    for _ in range(READINGS):
        pool.read(set(chance.sample(range(20), 8)), pace)
    assert pool.linger.stays >= LEAST
    for _ in range(60):
        pool.read(set(chance.sample(range(20), 8)), pace)
    sizes = [len(pool.read(set(chance.sample(range(20), 8)), pace)) for _ in range(200)]

    # Now and then one of twenty is missing for longer than ever before.
    assert min(sizes) >= 16
    assert sum(size == 20 for size in sizes) >= 120


@given(SEEDS, st.integers(4, 10))
def test_one_of_several_at_a_time_becomes_all(seed: int, count: int) -> None:
    """Weighted records that come one at a time are recognised, if three of them come back within ten readings."""
    chance, pool = random.Random(seed), Pool()  # noqa: S311 - a test
    for _ in range(100):
        pool.read({chance.randrange(count)}, 1.0)
    sizes = [len(pool.read({chance.randrange(count)}, 1.0)) for _ in range(200)]

    assert pool.linger.stays >= LEAST
    # Now and then one is missing for longer than ever before.
    assert sum(size == count for size in sizes) >= 120


def test_rotation_of_a_trimmed_answer_becomes_all() -> None:
    """A window of 19 that goes round 60 records is recognised, and all are in the pool."""
    pool = Pool()
    for number in range(60):
        pool.read({(7 * number + i) % 60 for i in range(19)}, 1.0)

    assert len(pool.members) == 60


@given(st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=30), PACES)
def test_what_is_present_is_always_in_the_pool(readings: list[set[int]], pace: float) -> None:
    """For any readings, the whole last one is in the pool; a lingering record was seen, is absent, and is not out."""
    pool, seen = Pool(), set[int]()
    for present in readings:
        pool.read(present, pace)
        seen |= present
        lingering, ended = set(pool.linger.lingering(pool.now)), set(pool.linger.ended(pool.now))
        assert not present & lingering
        assert not present & ended
        assert not lingering & ended
        assert lingering | ended <= seen


@given(st.lists(st.integers(0, 9), min_size=10, max_size=60), PACES)
def test_servers_that_only_come_or_go_never_linger(order: list[int], pace: float) -> None:
    """A pool that grows and shrinks without returning records does not linger."""
    pool = Pool()
    for last in range(len(set(order)) + 1):
        pool.read(set(range(last)), pace)
    for first in range(len(set(order)) + 1):
        pool.read(set(range(first, len(set(order)))), pace)

    assert pool.linger.stays == 0
    assert pool.linger.ended(pool.now) == {}


def test_pool_that_is_scaled_down_and_up_does_not_linger() -> None:
    """Records that return while the answer's size changes by more than one are not a sign of varying answers."""
    pool = Pool()
    for _ in range(5):
        pool.read({1, 2, 3, 4, 5, 6}, 1.0)
        pool.read({1, 2, 3}, 1.0)

    assert pool.linger.stays == 0


@given(st.integers(3, 30), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=9), PACES)
def test_rolling_restart_does_not_linger(count: int, steps: list[tuple[int, int]], pace: float) -> None:
    """Servers that go one after the other, each for some readings, and come back are not varying answers."""
    pool, every = Pool(), set(range(count))
    for _ in range(2):
        for number in range(count):
            away, together = steps[number % len(steps)]
            for _ in range(away):
                pool.read(every - {number}, pace)
            for _ in range(together):
                pool.read(every, pace)
        pool.read(every, pace)

    assert pool.linger.stays == 0


def test_flapping_servers_do_not_linger() -> None:
    """Servers that come and go independently are not varying answers if all are there in between."""
    pool, every = Pool(), set(range(9))
    for number in (0, 1, 2, 1, 0, 2, 0, 1):
        pool.read(every - {number}, 1.0)
        pool.read(every, 1.0)

    assert pool.linger.stays == 0


def test_absence_of_long_ago_does_not_make_records_stay() -> None:
    """The absence of a server during a repair does not affect answers that start to vary much later."""
    pool = Pool()
    for present, after in (({0, 1}, 1.0), ({1}, 1.0), ({0, 1}, 500.0), ({0, 1}, FORGOTTEN), ({0, 1}, FORGOTTEN)):
        pool.read(present, after)
    varying(pool, 1.0)

    assert pool.linger.stays == LEAST


def test_record_that_moves_does_not_stay() -> None:
    """A new port of the same target replaces a record that the answer lacks; others stay."""
    linger = Linger[tuple[str, int], str](60.0, identity=lambda key: key[0])
    linger.read({("a", 1): "a:1", ("a", 2): "a:2", ("b", 1): "b:1"}, 1.0)
    linger.read({("a", 2): "a:2", ("a", 3): "a:3"}, 2.0)

    assert set(linger.ended(2.0)) == {("a", 1)}
    assert set(linger.lingering(2.0)) == {("b", 1)}
    linger.read({("a", 1): "a:1"}, 3.0)
    assert set(linger.lingering(3.0)) == {("a", 2), ("a", 3), ("b", 1)}


def varying(pool: Pool, pace: float) -> None:
    """Feed the pool with answers that vary."""
    for number in range(READINGS):
        pool.read({number % 5, (number + 1) % 5}, pace)
    assert pool.linger.stays > 0


@pytest.mark.parametrize(("pace", "stays"), [(1.0, LEAST), (27.0, 2 * 4 * 27.0), (100.0, MOST)])
def test_they_stay_for_twice_the_longest_absence(pace: float, stays: float) -> None:
    """A record stays twice the longest absence that ended in a return, at least one minute and at most ten."""
    pool = Pool()
    varying(pool, pace)

    assert pool.linger.stays == stays


def test_what_does_not_come_back_is_out() -> None:
    """A record whose time to stay is over is reported as out, until it comes back."""
    pool = Pool()
    varying(pool, 1.0)
    gone = {0, 1, 2, 3, 4} - {0, 1}
    pool.read({0, 1}, 1.0)
    assert gone <= set(pool.linger.lingering(pool.now))

    pool.read({0, 1}, LEAST)
    assert pool.linger.lingering(pool.now) == {}
    assert set(pool.linger.ended(pool.now)) == gone
    pool.read({0, 2}, 1.0)
    assert set(pool.linger.ended(pool.now)) == gone - {2}


def test_it_is_forgotten_after_a_quarter_of_an_hour_without_returns() -> None:
    """After a server has returned the same records for long, its answers count as complete again."""
    pool = Pool()
    varying(pool, 1.0)
    for _ in range(3):
        pool.read({0, 1}, FORGOTTEN / 2)

    assert pool.linger.stays == 0
    assert pool.read({0}, 1.0) == {0}


@pytest.mark.parametrize(("fixed", "members"), [(30.0, {0, 1}), (0.0, {1})])
def test_operator_sets_how_long(fixed: float, members: set[int]) -> None:
    """With a time from the operator, records stay that long from the first reading on; with 0 never."""
    pool = Pool(fixed)
    pool.read({0, 1}, 1.0)

    assert pool.read({1}, 1.0) == members
    assert pool.read({1}, 30.0) == {1}
    assert set(pool.linger.ended(pool.now)) == ({0} if fixed else set())


class CloudMap(FakeDns):
    """Returns eight of twenty records, chosen at random for each query."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = random.Random(7)  # noqa: S311 - a test
        self.numbers = list(range(20))
        for number in self.numbers:
            self.replies[f"i{number}.example.", "A"] = Reply([f"i{number}.example. 60 A 10.0.0.{number}"])

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Choose records, and answer."""
        chosen = self._chance.sample(self.numbers, 8)
        self.replies[SRV] = Reply([f"{NAME}. 1 SRV 1 1 80 i{number}.example." for number in chosen])
        return super().respond(wire, protocol)


async def test_pool_over_a_server_that_varies_its_answers() -> None:
    """All twenty are in the answer after a while, with a note, and none of them is ever missing or out."""
    async with CloudMap() as server:
        one = SrvSource(NAME, Resolvers([server.address]), 0.01, 0.01, families=(True,))
        for _ in range(40):
            await one.next()
        answers: list[Answer] = [await one.next() for _ in range(10)]

        assert [len(answer.servers) for answer in answers] == [20] * 10
        assert all(answer.out == () and len(answer.identities) == 20 for answer in answers)
        assert "varies its answers: real servers that one lacks stay for 60 s" in str(answers[-1].note)


async def test_record_that_lingered_to_the_end_is_out() -> None:
    """A record that a varying server does not return any more is removed from the servers, and is out."""
    async with CloudMap() as server:
        one = SrvSource(NAME, Resolvers([server.address]), 0.01, 0.01, families=(True,), linger=0.5)
        for _ in range(20):
            await one.next()
        server.numbers.remove(3)
        answer = await one.next()
        async with asyncio.timeout(20):
            while "i3.example." in answer.identities.values():
                answer = await one.next()

    assert (parse_address("10.0.0.3"), 80) in answer.out


async def test_record_lingers_with_the_address_that_it_had_last() -> None:
    """A lingering record has its latest addresses, if they changed while the records stayed the same."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply([f"{NAME}. 1 SRV 1 1 80 {host}.example." for host in "ab"])
        for number, host in enumerate("ab"):
            server.replies[f"{host}.example.", "A"] = Reply([f"{host}.example. 0 A 10.0.0.{number}"])
        one = SrvSource(NAME, Resolvers([server.address]), 0.05, 1.0, families=(True,), linger=60.0)
        await one.next()
        server.replies["a.example.", "A"] = Reply(["a.example. 0 A 10.0.0.9"])
        answer = await one.next()
        server.replies[SRV] = Reply([f"{NAME}. 1 SRV 1 1 80 b.example."])
        async with asyncio.timeout(20):
            while not answer.note:
                answer = await one.next()

    assert [str(server) for server in answer.servers] == ["10.0.0.1:80", "10.0.0.9:80"]
    assert answer.note == "--linger: real servers that an answer lacks stay for 60 s after they were last seen"


async def test_outage_ends_no_stay() -> None:
    """An error is no answer without a record, so after any outage the records that stayed before it still do."""
    async with FakeDns() as server:
        for number, host in enumerate("ab"):
            server.replies[f"{host}.example.", "A"] = Reply([f"{host}.example. 60 A 10.0.0.{number}"])
        one = SrvSource(NAME, Resolvers([server.address]), 0.01, 0.01, families=(True,), linger=2.0)
        for host in "ab":
            server.replies[SRV] = Reply([f"{NAME}. 1 SRV 1 1 80 {host}.example."])
            before = await one.next()
        server.replies[SRV] = Reply(rcode="SERVFAIL")
        for _ in range(3):
            with pytest.raises(SourceError):
                await one.next()
            await asyncio.sleep(0.8)
        server.replies[SRV] = Reply([f"{NAME}. 1 SRV 1 1 80 b.example."])
        after = await one.next()

    assert [str(server) for server in before.servers] == ["10.0.0.0:80", "10.0.0.1:80"]
    assert (after.servers, after.out) == (before.servers, ())


async def test_unread_family_ends_no_stay() -> None:
    """The same for one family of a plain name, while the other one is read."""
    async with FakeDns() as server:
        owner = "db.example."
        four, six = (owner, "A"), (owner, "AAAA")
        server.replies[four] = Reply([f"{owner} 0 A 10.0.0.1"])
        one = AddressSource("db.example", 80, Resolvers([server.address]), 0.01, 0.01, linger=2.0)
        for number in (1, 2):
            server.replies[six] = Reply([f"{owner} 0 AAAA fd00::{number}"])
            before = await one.next()
        server.replies[six] = Reply(rcode="SERVFAIL")
        for _ in range(3):
            assert (await one.next()).unread
            await asyncio.sleep(0.8)
        server.replies[six] = Reply([f"{owner} 0 AAAA fd00::2"])
        after = await one.next()

    assert [str(server) for server in before.servers] == ["10.0.0.1:80", "[fd00::1]:80", "[fd00::2]:80"]
    assert (after.servers, after.out) == (before.servers, ())
