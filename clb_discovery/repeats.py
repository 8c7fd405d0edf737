"""Reporting repeated events less and less often: at once, then with a count at intervals that double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 10.0
"""Seconds until an event that goes on is reported again; each further interval is twice as long."""
LONGEST: Final = 3600.0
"""Longest interval between two reports, in seconds."""
FORGOTTEN: Final = 300.0
"""An event that has not happened for this many seconds counts as new."""
MOST: Final = 1024
"""Most events that are remembered, because their texts come from untrusted sources."""


@dataclass(slots=True)
class _Event:
    due: float
    last: float
    interval: float = FIRST
    unsaid: int = 0


class Repeats:
    """Remembers reported events, and how often each happened since."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], _Event] = {}

    def happened(self, what: str, reason: str, now: float) -> int | None:
        """Count an event, and return whether to report it.

        :param now: seconds of a monotonic clock.
        :returns: how often it has happened since the last report, or 0 if it is new; None if it is not to be reported.
        """
        key = what, reason
        event = self._events.pop(key, None)  # reinserted at the end, so that the first is the least recent
        if event is None or now - event.last > FORGOTTEN:
            event = _Event(due=now, last=now)
        else:
            event.unsaid += 1
            event.last = now
        self._events[key] = event
        if len(self._events) > MOST:
            del self._events[next(iter(self._events))]
        if now < event.due:
            return None
        count, event.unsaid = event.unsaid, 0
        event.due = now + event.interval
        event.interval = min(2 * event.interval, LONGEST)
        return count
