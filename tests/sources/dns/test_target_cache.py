"""The shared cache of target addresses: what is kept, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from dns.name import Name
from dns.rdatatype import AAAA, A, RdataType
from structlog.testing import capture_logs

from clb_discovery.sources.dns.answer import AddressSet, Unavailable
from clb_discovery.sources.dns.gate import ALL_SILENT_AFTER, SILENT_AFTER
from clb_discovery.sources.dns.lookup import Found, Lookup, LookupFailedError
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.target_cache import Addresses, Question


class Nobody(Lookup):
    """Returns a negative answer with a TTL of zero for every target."""

    def __init__(self) -> None:
        super().__init__("test", Resolvers(["127.0.0.1"]).current())
        self.asked = 0

    async def find(self, name: Name, rdtype: RdataType, *, tcp: bool = False) -> Found:
        """Answer at once."""
        del rdtype, tcp
        self.asked += 1
        response: Any = None
        return Found(name, None, response, 1)


async def test_targets_that_are_gone_are_forgotten() -> None:
    """Names that come and go, like those of containers, do not fill the memory."""
    addresses, lookup, bounds = Addresses(), Nobody(), (0.001, 0.001)
    kept = []
    for number in range(5000):
        question = Question(f"host-{number}.example.", A)
        known = (await addresses.find(lookup, [question], 0.0, bounds))[question]
        assert isinstance(known, AddressSet)
        assert known.addresses == ()
        kept.append(len(addresses))
        if number % 500 == 0:
            await asyncio.sleep(0.002)

    assert max(kept) < 2500


async def test_question_that_is_not_sent_yet_is_shared() -> None:
    """Services that all need a fresh answer share one query, although they start at different times."""
    addresses, lookup, question = Addresses(), Nobody(), Question("host.example.", A)
    clock = asyncio.get_running_loop().time

    async def find() -> None:
        await addresses.find(lookup, [question], clock(), (0.001, 0.001))

    await asyncio.gather(*(find() for _ in range(100)))

    assert lookup.asked == 1


class Broken(Nobody):
    """Gets no response to the first query, and has a bug in the second."""

    async def find(self, name: Name, rdtype: RdataType, *, tcp: bool = False) -> Found:
        """Raise."""
        if self.asked:
            raise KeyError(name)
        await super().find(name, rdtype, tcp=tcp)
        raise LookupFailedError(str(name), "no answer", is_silence=True)


async def test_bug_of_a_query_in_the_background_is_reported() -> None:
    """No caller waits for such a query, so its bug is logged, with the source that has started it."""
    addresses, lookup, question = Addresses(), Broken(), Question("host.example.", A)
    with capture_logs() as logs:
        for _ in range(2):
            assert isinstance((await addresses.find(lookup, [question], 0.0, (0.001, 0.001)))[question], Unavailable)
            await asyncio.sleep(0.02)
    errors = [(line["event"], line["source"]) for line in logs if line["log_level"] == "error"]
    assert errors == [("source failed unexpectedly", "test")]


class Partly(Nobody):
    """Gets no response for some questions, and a negative answer for the others."""

    def __init__(self, silent: Collection[Question]) -> None:
        super().__init__()
        self.answered = list[Question]()
        self._silent = silent

    async def find(self, name: Name, rdtype: RdataType, *, tcp: bool = False) -> Found:
        """Answer, or raise."""
        question = Question(name.to_text(), rdtype)
        if question in self._silent:
            raise LookupFailedError(str(name), "no answer", is_silence=True)
        self.answered.append(question)
        return await super().find(name, rdtype, tcp=tcp)


async def test_silence_about_one_type_does_not_stop_queries_of_the_other() -> None:
    """Where queries for AAAA records are dropped, A records are read as ever, however many names there are."""
    names = [f"host-{number}.example." for number in range(ALL_SILENT_AFTER)]
    lookup, addresses, bounds = Partly([Question(name, AAAA) for name in names]), Addresses(), (0.001, 0.001)
    for _ in range(3):
        found = await addresses.find(
            lookup, [Question(name, kind) for name in names for kind in (A, AAAA)], 0.0, bounds
        )
        assert all(isinstance(found[Question(name, A)], AddressSet) for name in names)
        assert all(isinstance(found[Question(name, AAAA)], Unavailable) for name in names)
        await asyncio.sleep(0.01)


async def test_name_that_has_not_failed_is_the_one_query_of_a_silent_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that time out do not take it from the others each time, which are queried again once it is answered."""
    monkeypatch.setattr("clb_discovery.sources.dns.gate.PAUSE", 0.1)
    dead = [Question(f"dead-{number}.example.", A) for number in range(SILENT_AFTER)]
    alive = [Question(f"host-{number}.example.", A) for number in range(2)]
    lookup, addresses, bounds = Partly(dead), Addresses(), (0.001, 0.001)
    await addresses.find(lookup, dead, 0.0, bounds)
    await asyncio.sleep(0.15)
    await addresses.find(lookup, [*dead, *alive], 0.0, bounds)
    await asyncio.sleep(0.01)
    assert lookup.answered == alive[-1:]

    found = await addresses.find(lookup, alive, 0.0, bounds)
    assert all(isinstance(found[one], AddressSet) for one in alive)


async def test_what_is_good_is_kept() -> None:
    """Even with very many targets, no valid set is dropped."""
    addresses, lookup, bounds = Addresses(), Nobody(), (60.0, 60.0)
    questions = [Question(f"host-{number}.example.", A) for number in range(5000)]
    for _ in range(2):
        await addresses.find(lookup, questions, 0.0, bounds)

    assert lookup.asked == len(addresses) == len(questions)
