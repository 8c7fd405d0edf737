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
class _Said:
    interval: float
    due: float
    last: float
    unsaid: int = 0


class Repeats:
    """Remembers reported events, and how often each happened since."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], _Said] = {}

    def happened(self, what: str, reason: str, now: float) -> int | None:
        """Count an event, and return whether to report it.

        :param now: seconds of a monotonic clock.
        :returns: how often it has happened since the last report, or 0 if it is new; None if it is not to be reported.
        """
        key = what, reason
        said = self._said.pop(key, None)  # reinserted at the end, so that the first is the least recent
        if said is None or now - said.last > FORGOTTEN:
            said = _Said(FIRST, due=now, last=now)
        else:
            said.unsaid += 1
            said.last = now
        self._said[key] = said
        if len(self._said) > MOST:
            del self._said[next(iter(self._said))]
        if now < said.due:
            return None
        count, said.unsaid = said.unsaid, 0
        said.due = now + said.interval
        said.interval = min(2 * said.interval, LONGEST)
        return count
