"""The addresses of targets, which the services of one sidecar share: servers are often behind many names."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

import dns.name
from dns.rdatatype import RdataType

from clb_discovery.sources.srv.answer import AddressSet, is_good
from clb_discovery.sources.srv.lookup import Lookup
from clb_discovery.sources.srv.repeat import Repeat

_PRUNED_FROM: Final = 1024
"""Sets that are kept without a look at whether they are still good."""


@dataclass(frozen=True, slots=True)
class Question:
    """One target in one family."""

    target: str
    """Absolute, as `to_text` writes it."""
    rdtype: RdataType
    """A or AAAA."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    asked: float
    found: asyncio.Future[AddressSet | None]


@dataclass(frozen=True, slots=True)
class _Known:
    found: AddressSet
    repeat: Repeat


class Addresses:
    """What is known of targets, each set for its own TTL, also that there is none (RFC 2308 section 5)."""

    def __init__(self) -> None:
        """Know nothing."""
        self._known: dict[Question, _Known] = {}
        self._under_way: dict[Question, _UnderWay] = {}
        self._pruned_from = _PRUNED_FROM

    def __len__(self) -> int:
        """Return how many sets are kept, some of which nobody may use any more."""
        return len(self._known)

    def known(self, question: Question, since: float, bounds: tuple[float, float]) -> AddressSet | None:
        """Return what a service was told, if that may be used once more.

        :param since: not what was asked before this time, in seconds of the loop's clock.
        :param bounds: least and most seconds between questions.
        """
        known = self._known.get(question)
        if known is None or known.found.asked < since or not is_good(known.found, bounds, _now()):
            return None
        return known.found

    async def ask(self, lookup: Lookup, question: Question, since: float, bounds: tuple[float, float]) -> AddressSet:
        """Ask, or wait for the answer that another service is about to get; if it gets none, ask nevertheless.

        :param since: in seconds of the loop's clock: a question that was sent earlier is not waited for.
        :param bounds: least and most seconds between questions.
        :raises SourceError: if the question got no proper answer.
        """
        under_way = self._under_way.get(question)
        if under_way is not None and under_way.asked >= since:
            found = await asyncio.shield(under_way.found)
            if found is not None:
                return found
        mine = self._under_way[question] = _UnderWay(_now(), asyncio.get_running_loop().create_future())
        found = None
        try:
            known = await self._ask(lookup, question)
            self._keep(question, known, bounds)
            found = known.found
            return found
        finally:
            mine.found.set_result(found)
            if self._under_way.get(question) is mine:
                del self._under_way[question]

    async def _ask(self, lookup: Lookup, question: Question) -> _Known:
        name, asked, last = dns.name.from_text(question.target), _now(), self._known.get(question)
        if last is not None and (ttl := await lookup.again(name, last.repeat)) is not None:
            return _Known(replace(last.found, ttl=ttl, asked=asked), last.repeat)
        asked = _now()
        answer = await lookup.find(name, question.rdtype)
        found = AddressSet(tuple(record.address for record in answer.records or ()), answer.ttl, asked)
        return _Known(found, Repeat(answer.outline, last.repeat if last else None))

    def _keep(self, question: Question, known: _Known, bounds: tuple[float, float]) -> None:
        """Keep a set, and from time to time drop those that nobody can use any more."""
        self._known[question] = known
        if len(self._known) > self._pruned_from:
            now = _now()
            self._known = {asked: known for asked, known in self._known.items() if is_good(known.found, bounds, now)}
            self._pruned_from = max(_PRUNED_FROM, 2 * len(self._known))


def _now() -> float:
    return asyncio.get_running_loop().time()
