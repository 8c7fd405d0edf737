"""Report a repeated event less and less often: at once, then with a count at intervals that double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 10.0
"""Seconds until an event that goes on is reported again; each further interval is twice as long."""
LONGEST: Final = 3600.0
"""At most so many seconds are between two reports."""
FORGOTTEN: Final = 300.0
"""Seconds after which an event that did not happen again is new."""
MOST: Final = 1024
"""At most so many different events are remembered, because their text comes from other hosts."""


@dataclass(slots=True)
class _Event:
    due: float
    last: float
    interval: float = FIRST
    unsaid: int = 0


class Repeats:
    """The events that were reported, and how often each has happened since."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], _Event] = {}

    def happened(self, what: str, reason: str, now: float) -> int | None:
        """Note an event, and tell whether to report it.

        :param now: seconds on a clock that does not go backwards.
        :returns: how often it has happened since the last report, or 0 if it is new; None for no report now.
        """
        key = what, reason
        event = self._events.pop(key, None)  # inserted again at the end: the first is the one that is oldest
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
