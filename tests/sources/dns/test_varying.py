"""Names whose server varies their addresses: which addresses stay, and how long."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.linger import LEAST, READINGS
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from clb_discovery.sources.dns.varying import Varying, varying_note
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SRV, records


class Name:
    """One name that is queried each second."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.varying = Varying[str, int](enabled=enabled)
        self.now = 0.0

    def read(self, *addresses: int, after: float = 1.0) -> set[int]:
        """Take an answer; return the addresses that count."""
        self.now += after
        return set(self.varying.completed("a.example.", addresses, self.now, self.now))

    def vary(self) -> set[int]:
        """Take answers that vary: two of five each time."""
        for number in range(READINGS):
            found = self.read(number % 5, (number + 1) % 5)
        return found


@given(st.integers(0, 2**32 - 1))
def test_eight_of_twenty_at_random_become_all_twenty(seed: int) -> None:
    """They are recognised within ten answers, and then all are there and stay."""
    chance, name = random.Random(seed), Name()  # noqa: S311 - a test
    for _ in range(READINGS + 60):
        name.read(*chance.sample(range(20), 8))
    sizes = [len(name.read(*chance.sample(range(20), 8))) for _ in range(100)]

    assert min(sizes) >= 16
    assert sum(size == 20 for size in sizes) >= 60
    assert name.varying.stays("a.example.", name.now) >= LEAST


@pytest.mark.parametrize(("first", "second"), [((1,), (2,)), ((1, 2, 3), (4, 5, 6))], ids=["one", "three"])
def test_a_name_that_moves_is_replaced_at_once(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Also after a time, and when it moves back."""
    name = Name()
    for addresses in (first, first, second, second, first, first):
        assert name.read(*addresses) == set(addresses)
    assert name.varying.stays("a.example.", name.now) == 0


def test_an_address_that_does_not_come_back_leaves() -> None:
    """Its time counts from the answer that last had it, but for the time after a failed query."""
    name = Name()
    assert name.vary() == {0, 1, 2, 3, 4}
    name.read(0, 1)
    name.varying.missed()
    assert name.read(0, 1, after=10 * LEAST) == {0, 1, 2, 3, 4}
    assert name.read(0, 1, after=LEAST) == {0, 1}


def test_one_answer_counts_once() -> None:
    """However often a round uses what it has, that is no further reading."""
    name = Name()
    for number in range(READINGS):
        for _ in range(2 * READINGS):
            found = set(name.varying.completed("a.example.", (number % 5, (number + 1) % 5), number, number))
    assert found == {0, 1, 2, 3, 4}


def test_it_can_be_switched_off_and_forgotten() -> None:
    """Names that are no longer of interest start again."""
    assert len(Name(enabled=False).vary()) == 2
    name = Name()
    name.vary()
    name.varying.keep({"a.example."})
    assert name.read(0) == {0, 1, 2, 3, 4}
    name.varying.keep(())
    assert name.read(0) == {0}


def test_the_note_has_the_first_name() -> None:
    """And the number of others."""
    assert varying_note({}) is None
    assert str(varying_note({"b": 90.0})).startswith("the DNS server varies the addresses of b: those that an answer ")
    assert "of a (and of 1 more names): those that an answer lacks stay for 60 s" in str(
        varying_note({"b": 90.0, "a": 60.0})
    )


class Balanced(FakeDns):
    """One SRV record, whose target has eight of twenty addresses, chosen at random for each query."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = random.Random(7)  # noqa: S311 - a test
        self.replies[SRV] = Reply(records("1 1 80 a.example."))

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Choose addresses, and answer."""
        chosen = self._chance.sample(range(20), 8)
        self.replies["a.example.", "A"] = Reply([f"a.example. 1 A 10.0.0.{number}" for number in chosen])
        return super().respond(wire, protocol)


def balanced(server: FakeDns, linger: float | None = None) -> SrvSource:
    """Return a source that is queried a hundred times a second."""
    return SrvSource(NAME, Resolvers([server.address]), 0.01, 0.01, families=(True,), linger=linger)


async def test_target_that_varies_has_all_of_its_addresses() -> None:
    """They are all in the answer after a while, with a note; a failed query takes none of them."""
    async with Balanced() as server:
        one = balanced(server)
        for _ in range(40):
            await one.next()
        answers: list[Answer] = [await one.next() for _ in range(5)]
        srv, server.replies[SRV] = server.replies[SRV], Reply(rcode="SERVFAIL")
        with pytest.raises(SourceError):
            await one.next()
        server.replies[SRV] = srv
        answers.append(await one.next())

    assert [len(answer.servers) for answer in answers] == [20] * 6
    assert all(set(answer.identities.values()) == {"a.example."} for answer in answers)
    assert "varies the addresses of a.example.: those that an answer lacks stay for 60 s" in str(answers[0].note)


async def test_linger_of_zero_leaves_the_last_answer() -> None:
    """The operator knows that answers are complete."""
    async with Balanced() as server:
        one = balanced(server, 0.0)
        answers = [await one.next() for _ in range(30)]

    assert {(len(answer.servers), answer.note) for answer in answers} == {(8, None)}


async def test_target_that_moves_is_replaced_at_once() -> None:
    """Whatever the time is for which records linger, a target with another address has left the previous one."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("1 1 80 a.example."))
        one = balanced(server, 60.0)
        for number in (1, 2, 1, 2):
            server.replies["a.example.", "A"] = Reply([f"a.example. 0 A 10.0.0.{number}"])
            async with asyncio.timeout(20):
                while [str(server) for server in (await one.next()).servers] != [f"10.0.0.{number}:80"]:
                    pass
