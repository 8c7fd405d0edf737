"""The shared cache of target addresses: what is kept, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

from dns.name import Name
from dns.rdatatype import A, RdataType
from structlog.testing import capture_logs

from clb_discovery.sources.dns.answer import AddressSet, Unavailable
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


async def test_what_is_good_is_kept() -> None:
    """Even with very many targets, no valid set is dropped."""
    addresses, lookup, bounds = Addresses(), Nobody(), (60.0, 60.0)
    questions = [Question(f"host-{number}.example.", A) for number in range(5000)]
    for _ in range(2):
        await addresses.find(lookup, questions, 0.0, bounds)

    assert lookup.asked == len(addresses) == len(questions)
