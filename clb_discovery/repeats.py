"""Reporting repeated events less and less often: at once, then with a count at intervals that double."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FIRST: Final = 10.0
"""Seconds until an event that goes on is reported again; each further interval is twice as long."""
LONGEST: Final = 3600.0
"""Longest interval between two reports, in seconds."""
FORGOTTEN: Final = 300.0
"""An event that has not happened for this many seconds counts as new."""
MOST: Final = 64
"""Most reasons that are remembered of one thing, because their texts come from untrusted sources."""


@dataclass(slots=True)
class _Event:
    due: float
    last: float
    reported: float = -math.inf
    interval: float = FIRST
    unsaid: int = 0


class Repeats:
    """Remembers reported events, and how often each happened since.

    However many things have trouble at a time, each is remembered until it is over: no thing displaces another.
    """

    def __init__(self) -> None:
        self._things: dict[str, dict[str, _Event]] = {}  # the least recent first, as the reasons of each

    def happened(self, what: str, reason: str, now: float, *, soon: bool = False) -> int | None:
        """Count an event, and return whether to report it.

        :param what: the thing; the caller bounds how many of them there are.
        :param reason: any text.
        :param now: seconds of a monotonic clock.
        :param soon: do not wait for longer than the first interval, because the last report is wrong by now.
        :returns: how often it has happened since the last report, or 0 if it is new; None if it is not to be reported.
        """
        events = self._things.pop(what, {})  # reinserted at the end, so that the first is the least recent
        event = events.pop(reason, None)  # as above
        if event is None or now - event.last > FORGOTTEN:
            event = _Event(due=now, last=now)
        else:
            event.unsaid += 1
            event.last = now
        events[reason] = event
        if len(events) > MOST:
            del events[next(iter(events))]
        self._things[what] = events
        self._forget(now)
        if now < (min(event.due, event.reported + FIRST) if soon else event.due):
            return None
        event.reported = now
        count, event.unsaid = event.unsaid, 0
        event.due = now + event.interval
        event.interval = min(2 * event.interval, LONGEST)
        return count

    def _forget(self, now: float) -> None:
        """Forget things that would count as new."""
        while True:
            what, events = next(iter(self._things.items()))
            if now - next(reversed(events.values())).last <= FORGOTTEN:
                return
            del self._things[what]
