"""Limits on concurrent address queries of the process, and zones that do not answer.

Silence is of one type of records: some servers and middleboxes answer queries for A, and drop those for AAAA.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import dns.name
import structlog
from dns.rdatatype import RdataType

MOST: Final = 32
"""Maximum number of concurrent queries, of all services; each has one socket."""
MOST_OF_ZONE: Final = 8
"""Maximum number of these for names of one zone, so that a slow zone leaves places for others."""
SILENT_AFTER: Final = 8
"""Consecutive time-outs of one type after which a zone counts as silent for it."""
ALL_SILENT_AFTER: Final = 64
"""The same for all zones together, which indicates a dead server."""
PAUSE: Final = 5.0
"""Seconds between two queries of one type to a silent zone; all others fail at once."""
_PRUNED_FROM: Final = 1024

_log = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Share:
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_OF_ZONE))
    users: int = 0


@dataclass(slots=True)
class _Silence:
    time_outs: int = 0
    next_question: float = 0.0


class Gate:
    """Places for queries, and the silent zones. *Zone* means here the result of `zone_of`."""

    def __init__(self) -> None:
        """Start with all places free."""
        self._places = asyncio.Semaphore(MOST)
        self._shares: dict[dns.name.Name, _Share] = {}
        self._silences: dict[tuple[dns.name.Name, RdataType], _Silence] = {}

    @asynccontextmanager
    async def place(self, name: dns.name.Name) -> AsyncIterator[None]:
        """Wait for a place for one query about a name, and keep it within the block."""
        zone = zone_of(name)
        share = self._shares.setdefault(zone, _Share())
        share.users += 1
        try:
            async with share.places, self._places:
                yield
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[zone]

    def may_ask(self, name: dns.name.Name, rdtype: RdataType, now: float) -> bool:
        """Return whether a query about a name may be sent; in a silent zone, one of each type per `PAUSE` may.

        :param now: seconds of any monotonic clock, the same in every call.
        """
        silent = [
            silence
            for zone, limit in _limits(name)
            if (silence := self._silences.get((zone, rdtype))) is not None and silence.time_outs >= limit
        ]
        if any(now < silence.next_question for silence in silent):
            return False
        for silence in silent:
            silence.next_question = now + PAUSE
        return True

    def is_silent(self, name: dns.name.Name, rdtype: RdataType) -> bool:
        """Return whether the zone of a name, or all zones together, count as silent for a type."""
        return any(
            silence.time_outs >= limit
            for zone, limit in _limits(name)
            if (silence := self._silences.get((zone, rdtype))) is not None
        )

    def answered(self, name: dns.name.Name, rdtype: RdataType) -> None:
        """Note that a query about a name was answered, whatever the answer was."""
        for zone, _ in _limits(name):
            self._silences.pop((zone, rdtype), None)

    def timed_out(self, name: dns.name.Name, rdtype: RdataType, now: float) -> None:
        """Note that a query about a name timed out."""
        if len(self._silences) >= _PRUNED_FROM:
            self._silences = {key: one for key, one in self._silences.items() if now < one.next_question + PAUSE}
        for zone, limit in _limits(name):
            silence = self._silences.setdefault((zone, rdtype), _Silence())
            silence.time_outs += 1
            silence.next_question = now + PAUSE
            if silence.time_outs == limit:
                shown = zone.canonicalize().to_text()
                _log.debug(
                    "zone does not respond; it is queried rarely",
                    zone=shown,
                    type=rdtype.name,
                    time_outs=limit,
                    seconds=PAUSE,
                )


def zone_of(name: dns.name.Name) -> dns.name.Name:
    """Return the name without its first label."""
    return name.parent() if name != dns.name.root else name


def _limits(name: dns.name.Name) -> tuple[tuple[dns.name.Name, int], ...]:
    return ((zone_of(name), SILENT_AFTER), (dns.name.empty, ALL_SILENT_AFTER))
