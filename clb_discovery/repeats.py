"""Saying the same thing less and less often: at once, then with a count at intervals that double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 10.0
"""Seconds until what goes on is said again; each further time takes twice as long."""
LONGEST: Final = 3600.0
"""Seconds between two times, at most."""
FORGOTTEN: Final = 300.0
"""Seconds after which something that did not happen again is new."""
MOST: Final = 1024
"""Different things that are remembered, since their words come from elsewhere."""


@dataclass(slots=True)
class _Said:
    interval: float
    due: float
    last: float
    unsaid: int = 0


class Repeats:
    """Remembers what was said, and how often it happened since."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], _Said] = {}

    def happened(self, what: str, reason: str, now: float) -> int | None:
        """Note that something happened, and tell whether to say it.

        :param now: seconds on a clock that does not go backwards.
        :returns: how often it happened since it was said last, or 0 if it is new; None if it is not to be said now.
        """
        key = what, reason
        said = self._said.pop(key, None)  # and back at the end: the first is the one that did not happen for longest
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
