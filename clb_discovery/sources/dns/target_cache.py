"""The cache of addresses, shared by all services of one sidecar: a server often serves many of them."""

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
from clb_discovery.sources.dns.whole import Whole
from clb_discovery.sources.follow import Bugs

PATIENCE: Final = 20.0
"""Seconds for all queries of one call; queries without an answer by then have failed."""
AT_ONCE: Final = 2 * MOST_OF_ZONE
"""Maximum number of queries of one call that run or wait for a place, so that other calls get places in between."""
RETRY: Final = 5
"""Seconds until a query is repeated that failed, or whose negative answer has no SOA record."""
_PRUNED_FROM: Final = 1024
"""Number of cached sets up to which none is checked for expiry."""

_log = structlog.stdlib.get_logger()


class Question(NamedTuple):
    """One target or other name in one family."""

    target: str
    """Absolute, as `to_text` writes it."""
    rdtype: RdataType
    """A or AAAA."""
    is_whole: bool = False
    """Whether an answer over UDP that may be truncated without a mark is queried again over TCP, as for SRV records:
    for names whose addresses are a whole pool."""


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[AddressSet | Unavailable]
    waiting: int = 0
    """Calls that wait for the answer; without any the query is cancelled."""
    asked: float = math.inf
    """When the query was sent, in seconds of the loop's clock."""


class Addresses:
    """Cached addresses of targets, each set for its own TTL, including negative answers (RFC 2308 section 5)."""

    def __init__(self, gate: Gate | None = None) -> None:
        """Start empty.

        :param gate: shared by all address queries of the process.
        """
        self._gate = gate or Gate()
        self._known: dict[Question, AddressSet | Unavailable] = {}
        self._running: dict[Question, _Running] = {}
        self._wholes: dict[Question, Whole] = {}  # as many as names of the configuration
        self._bugs = Bugs()  # of queries in the background
        self._pruned_from = _PRUNED_FROM

    def __len__(self) -> int:
        """Return how many sets are cached, including expired ones."""
        return len(self._known)

    def last(self, question: Question) -> AddressSet | None:
        """Return the last set for a question, if it is still cached, even if it has expired."""
        known = self._known.get(question)
        return known if isinstance(known, AddressSet) else None

    async def find(  # noqa: PLR0913 - each is a limit of its own
        self,
        lookup: Lookup,
        questions: Iterable[Question],
        since: float,
        bounds: tuple[float, float],
        patience: float = PATIENCE,
        *,
        wait_for_any: bool = False,
    ) -> Mapping[Question, AddressSet | Unavailable]:
        """Return cached addresses, share queries that other services have started, and query the others.

        A question that had no answer the last time is queried again in the background, so that a silent name delays a
        caller only once: it stays `Unavailable` until there is an answer.

        :param since: answers to queries from before this time do not count, in seconds of the loop's clock.
        :param bounds: minimum and maximum seconds between queries.
        :param patience: seconds after which a question without an answer is `Unavailable`.
        :param wait_for_any: wait for queries in the background, too, if no question of this call has addresses,
            because there is nothing that they could delay.
        """
        found: dict[Question, AddressSet | Unavailable] = {}
        missing: list[Question] = []
        silent: dict[Question, float] = {}
        probes: dict[tuple[dns.name.Name, RdataType], Question] = {}
        now = _now()
        for question in questions:
            known = self._known.get(question)
            if known is not None and known.asked >= since and is_good(known, bounds, now):
                found[question] = known
            elif isinstance(known, Unavailable) and known.is_silence:
                silent[question] = known.asked
                found[question] = replace(known, asked=now)
            elif self._gate.is_silent(name := dns.name.from_text(question.target), question.rdtype):
                probes[zone_of(name), question.rdtype] = question
                found[question] = _skipped(name, question.rdtype, now)
            else:
                missing.append(question)
        _log.debug(
            "addresses are taken from the cache, or queried",
            source=lookup.label,
            cached=len(found),
            queried=len(missing),
            silent=len(silent),
            silent_zones=len(probes),
        )
        # Names that failed themselves wait: each time they would take the only query of a zone that answers for others.
        waiting = {one for one in silent if (zone_of(dns.name.from_text(one.target)), one.rdtype) in probes}
        failed = sorted(silent.keys() - waiting, key=silent.__getitem__)
        for question in [*probes.values(), *failed[:AT_ONCE]]:
            self._query_in_background(lookup, question, bounds)
        if missing:
            await self._find_missing(lookup, missing, found, since, bounds, patience)
        if wait_for_any and not any(isinstance(one, AddressSet) and one.addresses for one in found.values()):
            found |= await self._find_in_background(found, now, patience)
        return found

    async def _find_in_background(
        self, questions: Iterable[Question], since: float, patience: float
    ) -> Mapping[Question, AddressSet | Unavailable]:
        """Return the results of queries in the background, with those that were sent from `since` on."""
        questions = tuple(questions)
        if running := [self._running[question].task for question in questions if question in self._running]:
            await asyncio.wait(running, timeout=patience)
        known = {question: self._known[question] for question in questions if question in self._known}
        return {question: one for question, one in known.items() if one.asked >= since}

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
        """Query, or wait for the same query of another call; cancel it when no call waits for it any more."""
        running = self._running.get(question)
        if running is None or running.asked < since:
            running = _Running(asyncio.create_task(self._ask(lookup, question, bounds)))
            self._running[question] = running
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting:
                if self._running.get(question) is running:
                    del self._running[question]
                running.task.cancel()
                await asyncio.gather(running.task, return_exceptions=True)

    def _query_in_background(self, lookup: Lookup, question: Question, bounds: tuple[float, float]) -> None:
        """Query in the background, for later calls; it ends by itself within the lifetime of a query."""
        if question in self._running:
            return
        running = _Running(asyncio.create_task(self._ask(lookup, question, bounds)), waiting=1)
        self._running[question] = running

        def ended(task: asyncio.Task[AddressSet | Unavailable]) -> None:
            if not task.cancelled() and (error := task.exception()):  # a bug: there is an outcome for everything else
                self._bugs.reason(lookup.label, error)
            if self._running.get(question) is running:
                del self._running[question]

        running.task.add_done_callback(ended)

    async def _ask(self, lookup: Lookup, question: Question, bounds: tuple[float, float]) -> AddressSet | Unavailable:
        name = dns.name.from_text(question.target)
        async with self._gate.place(name):
            asked = _now()
            mine = self._running.get(question)
            if mine is not None and mine.task is asyncio.current_task():
                mine.asked = asked
            if not self._gate.may_ask(name, question.rdtype, asked):
                return _skipped(name, question.rdtype, asked)
            known = await self._query(lookup, name, question, asked)
        self._keep(question, known, bounds)
        return known

    async def _query(
        self, lookup: Lookup, name: dns.name.Name, question: Question, asked: float
    ) -> AddressSet | Unavailable:
        note = None
        try:
            if question.is_whole:
                whole = self._wholes.setdefault(question, Whole(name, question.rdtype))
                answer, note = await whole.find(lookup)
            else:
                answer = await lookup.find(name, question.rdtype)
        except LookupFailedError as error:
            if error.is_silence:
                self._gate.timed_out(name, question.rdtype, _now())
            else:
                self._gate.answered(name, question.rdtype)
            return Unavailable(error.cause, RETRY, asked, error.is_silence, error.is_servfail, question.rdtype == A)
        self._gate.answered(name, question.rdtype)
        found = tuple(record.address for record in answer.records or ())
        return AddressSet(found, answer.ttl if found else answer.ttl or RETRY, asked, note)

    def _keep(self, question: Question, known: AddressSet | Unavailable, bounds: tuple[float, float]) -> None:
        """Cache a set, and drop expired sets from time to time."""
        self._known[question] = known
        if len(self._known) > self._pruned_from:
            now = _now()
            self._known = {asked: known for asked, known in self._known.items() if is_good(known, bounds, now)}
            self._pruned_from = max(_PRUNED_FROM, 2 * len(self._known))


def _skipped(name: dns.name.Name, rdtype: RdataType, now: float) -> Unavailable:
    cause = f"not queried now, because the last queries of {zone_of(name).canonicalize()} got no response"
    return Unavailable(cause, RETRY, now, is_silence=True, is_ipv4=rdtype == A)


def _now() -> float:
    return asyncio.get_running_loop().time()
