"""The addresses of targets, which the services of one sidecar share: servers are often behind many names."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import dns.name
import structlog
from dns.rdatatype import A, RdataType

from clb_discovery.sources.dns.answer import AddressSet, Unavailable, is_good
from clb_discovery.sources.dns.gate import MOST_OF_ZONE, Gate, zone_of
from clb_discovery.sources.dns.lookup import Lookup, LookupFailedError

PATIENCE: Final = 20.0
"""Seconds for all the questions of one call; what is not answered by then cannot be had now."""
AT_ONCE: Final = 2 * MOST_OF_ZONE
"""Questions of one call that are under way or wait for a place, so that others get places in between."""
RETRY: Final = 5
"""Seconds after which a question is asked again that failed, or whose negative answer has no SOA record."""
_PRUNED_FROM: Final = 1024
"""Sets that are kept without a look at whether they are still good."""

_log = structlog.stdlib.get_logger()


class Question(NamedTuple):
    """One target in one family."""

    target: str
    """Absolute, as `to_text` writes it."""
    rdtype: RdataType
    """A or AAAA."""


@dataclass(slots=True)
class _UnderWay:
    task: asyncio.Task[AddressSet | Unavailable]
    waiting: int = 0
    """Calls that want the answer; when there are none left the question is given up."""
    asked: float = math.inf
    """When it was sent, in seconds of the loop's clock."""


class Addresses:
    """What is known of targets, each set for its own TTL, also that there is none (RFC 2308 section 5)."""

    def __init__(self, gate: Gate | None = None) -> None:
        """Know nothing.

        :param gate: shared by everything in the process that asks for addresses.
        """
        self._gate = gate or Gate()
        self._known: dict[Question, AddressSet | Unavailable] = {}
        self._under_way: dict[Question, _UnderWay] = {}
        self._pruned_from = _PRUNED_FROM

    def __len__(self) -> int:
        """Return how many sets are kept, some of which nobody may use any more."""
        return len(self._known)

    def last(self, question: Question) -> AddressSet | None:
        """Return the last set that was asked for, as long as it is kept, whether or not it is still good."""
        known = self._known.get(question)
        return known if isinstance(known, AddressSet) else None

    async def find(
        self,
        lookup: Lookup,
        questions: Iterable[Question],
        since: float,
        bounds: tuple[float, float],
        patience: float = PATIENCE,
    ) -> Mapping[Question, AddressSet | Unavailable]:
        """Return what is known already, or another service is about to know; ask for the rest.

        What had no answer the last time is asked for again without waiting for it, so that a silent name holds up
        nobody for longer than once: it stays `Unavailable` until it has an answer.

        :param since: not what was asked before this time, in seconds of the loop's clock.
        :param bounds: least and most seconds between questions.
        :param patience: seconds after which what is not answered yet is `Unavailable`.
        """
        found: dict[Question, AddressSet | Unavailable] = {}
        missing: list[Question] = []
        silent: dict[Question, float] = {}
        probes: dict[dns.name.Name, Question] = {}
        now = _now()
        for question in questions:
            known = self._known.get(question)
            if known is not None and known.asked >= since and is_good(known, bounds, now):
                found[question] = known
            elif isinstance(known, Unavailable) and known.is_silence:
                silent[question] = known.asked
                found[question] = replace(known, asked=now)
            elif self._gate.is_silent(name := dns.name.from_text(question.target)):
                probes[zone_of(name)] = question
                found[question] = _not_asked(name, question.rdtype, now)
            else:
                missing.append(question)
        _log.debug(
            "addresses are taken from the cache, or queried",
            cached=len(found),
            queried=len(missing),
            silent=len(silent),
            silent_zones=len(probes),
        )
        for question in [*sorted(silent, key=silent.__getitem__)[:AT_ONCE], *probes.values()]:
            self._ask_behind(lookup, question, bounds)
        if missing:
            await self._find_missing(lookup, missing, found, since, bounds, patience)
        return found

    async def _find_missing(  # noqa: PLR0913, PLR0917 - one step of `find`
        self,
        lookup: Lookup,
        missing: list[Question],
        found: dict[Question, AddressSet | Unavailable],
        since: float,
        bounds: tuple[float, float],
        patience: float,
    ) -> None:
        left = iter(missing)

        async def work() -> None:
            for question in left:
                found[question] = await self._find_one(lookup, question, since, bounds)

        workers = [asyncio.create_task(work()) for _ in range(min(AT_ONCE, len(missing)))]
        try:
            done, _ = await asyncio.wait(workers, timeout=patience)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        for worker in done:
            worker.result()
        now = _now()
        for question in missing:
            if question not in found:
                cause = f"no answer within {patience:g} s"
                found[question] = Unavailable(cause, RETRY, now, is_silence=True, is_ipv4=question.rdtype == A)

    async def _find_one(
        self, lookup: Lookup, question: Question, since: float, bounds: tuple[float, float]
    ) -> AddressSet | Unavailable:
        """Ask, or wait for another call that asks the same; what nobody waits for any more is given up."""
        under_way = self._under_way.get(question)
        if under_way is None or under_way.asked < since:
            under_way = _UnderWay(asyncio.create_task(self._ask(lookup, question, bounds)))
            self._under_way[question] = under_way
        under_way.waiting += 1
        try:
            return await asyncio.shield(under_way.task)
        finally:
            under_way.waiting -= 1
            if not under_way.waiting:
                if self._under_way.get(question) is under_way:
                    del self._under_way[question]
                under_way.task.cancel()
                await asyncio.gather(under_way.task, return_exceptions=True)

    def _ask_behind(self, lookup: Lookup, question: Question, bounds: tuple[float, float]) -> None:
        """Ask, so that a later call knows the answer; it ends by itself within the lifetime of a question."""
        if question in self._under_way:
            return
        under_way = _UnderWay(asyncio.create_task(self._ask(lookup, question, bounds)), waiting=1)
        self._under_way[question] = under_way

        def ended(task: asyncio.Task[AddressSet | Unavailable]) -> None:
            if not task.cancelled():
                task.exception()
            if self._under_way.get(question) is under_way:
                del self._under_way[question]

        under_way.task.add_done_callback(ended)

    async def _ask(self, lookup: Lookup, question: Question, bounds: tuple[float, float]) -> AddressSet | Unavailable:
        name = dns.name.from_text(question.target)
        async with self._gate.place(name):
            asked = _now()
            mine = self._under_way.get(question)
            if mine is not None and mine.task is asyncio.current_task():
                mine.asked = asked
            if not self._gate.may_ask(name, asked):
                return _not_asked(name, question.rdtype, asked)
            known = await self._ask_now(lookup, name, question.rdtype, asked)
        self._keep(question, known, bounds)
        return known

    async def _ask_now(
        self, lookup: Lookup, name: dns.name.Name, rdtype: RdataType, asked: float
    ) -> AddressSet | Unavailable:
        try:
            answer = await lookup.find(name, rdtype)
        except LookupFailedError as error:
            if error.is_silence:
                self._gate.timed_out(name, _now())
            else:
                self._gate.answered(name)
            return Unavailable(error.cause, RETRY, asked, error.is_silence, error.is_servfail, rdtype == A)
        self._gate.answered(name)
        found = tuple(record.address for record in answer.records or ())
        return AddressSet(found, answer.ttl if found else answer.ttl or RETRY, asked)

    def _keep(self, question: Question, known: AddressSet | Unavailable, bounds: tuple[float, float]) -> None:
        """Keep a set, and from time to time drop those that nobody can use any more."""
        self._known[question] = known
        if len(self._known) > self._pruned_from:
            now = _now()
            self._known = {asked: known for asked, known in self._known.items() if is_good(known, bounds, now)}
            self._pruned_from = max(_PRUNED_FROM, 2 * len(self._known))


def _not_asked(name: dns.name.Name, rdtype: RdataType, now: float) -> Unavailable:
    cause = f"not asked now, since the last questions about {zone_of(name).canonicalize()} had no answer"
    return Unavailable(cause, RETRY, now, is_silence=True, is_ipv4=rdtype == A)


def _now() -> float:
    return asyncio.get_running_loop().time()
