"""The addresses of targets, which the services of one sidecar share: servers are often behind many names."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import dns.name
from dns.rdatatype import RdataType

from clb_discovery.sources.srv.answer import AddressSet, is_good
from clb_discovery.sources.srv.lookup import Lookup
from clb_discovery.sources.srv.repeat import Repeat

CONCURRENCY: Final = 32
"""Questions under way at once for the targets of one name."""

_PRUNED_FROM: Final = 1024
"""Sets that are kept without a look at whether they are still good."""


class Question(NamedTuple):
    """One target in one family."""

    target: str
    """Absolute, as `to_text` writes it."""
    rdtype: RdataType
    """A or AAAA."""


@dataclass(slots=True)
class _UnderWay:
    found: asyncio.Future[AddressSet | None]
    asked: float = math.inf
    """When it was sent, in seconds of the loop's clock."""


class _Known(NamedTuple):
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

    async def find(
        self, lookup: Lookup, questions: Iterable[Question], since: float, bounds: tuple[float, float]
    ) -> Mapping[Question, AddressSet]:
        """Return what is known already, or another service is about to know; ask for the rest.

        :param since: not what was asked before this time, in seconds of the loop's clock.
        :param bounds: least and most seconds between questions.
        :raises SourceError: if a question got no proper answer; the others are given up.
        """
        now = _now()
        found: dict[Question, AddressSet] = {}
        waiting: dict[Question, _UnderWay] = {}
        mine: dict[Question, _UnderWay] = {}
        for question in questions:
            known, under_way = self._known.get(question), self._under_way.get(question)
            if known is not None and known.found.asked >= since and is_good(known.found, bounds, now):
                found[question] = known.found
            elif under_way is not None and under_way.asked >= since:
                waiting[question] = under_way
            else:
                mine[question] = _UnderWay(asyncio.get_running_loop().create_future())
        if mine:
            self._under_way |= mine
            await self._ask_all(lookup, mine, bounds)
        for question, under_way in (mine | waiting).items():
            answer = await asyncio.shield(under_way.found)
            # Who asked may have given up.
            found[question] = answer or (await self.find(lookup, [question], since, bounds))[question]
        return found

    async def _ask_all(self, lookup: Lookup, mine: Mapping[Question, _UnderWay], bounds: tuple[float, float]) -> None:
        """Ask, and tell all who wait; raises as `find`."""
        places = asyncio.Semaphore(CONCURRENCY)

        async def ask(question: Question, under_way: _UnderWay) -> None:
            async with places:
                under_way.asked = _now()
                known = await self._ask(lookup, question)
            self._keep(question, known, bounds)
            under_way.found.set_result(known.found)

        try:
            await _all([ask(*one) for one in mine.items()])
        finally:
            for question, under_way in mine.items():
                if not under_way.found.done():
                    under_way.found.set_result(None)
                if self._under_way.get(question) is under_way:
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


async def _all(parts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first error ends the others, and is raised when they have ended.

    After an error `asyncio.TaskGroup` may leave the task around it marked as cancelled (Python before 3.13, gh-116720),
    and `asyncio.timeout` then takes its own time-out for the end of that task.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _now() -> float:
    return asyncio.get_running_loop().time()
