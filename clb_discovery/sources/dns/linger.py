"""Recognise servers that return another part of their records each time, and let records stay then. No I/O.

AWS Cloud Map returns 8 records at random, weighted records come one at a time, and Consul trims answers that do not
fit. Without this module their pools would flap.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Final, Generic, TypeVar

READINGS: Final = 10
"""Number of readings that are compared."""
RETURNS: Final = 3
"""The server varies its answers if at least so many records vanished and came back within these readings."""
FORGOTTEN: Final = 900.0
"""Seconds without a returning record after which the server no longer counts as varying."""
LEAST: Final = 60.0
MOST: Final = 600.0
"""Seconds: a record stays twice the longest absence that ended in a return, within these bounds."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Linger(Generic[_Key, _Value]):
    """The records of one name over its readings, and those that stay although the last reading lacks them."""

    def __init__(self, fixed: float | None = None, *, identity: Callable[[_Key], Hashable] | None = None) -> None:
        """Start without readings.

        :param fixed: seconds that records stay after they were last seen, in any case; 0 for never.
        :param identity: returns the part of a record that is the same after it moves. A new record replaces an absent
            one with the same identity, which then stays no longer. None if records never move.
        """
        self._fixed = fixed
        self._identity = identity
        self._readings: deque[frozenset[_Key]] = deque(maxlen=READINGS)
        self._seen: dict[_Key, tuple[float, _Value]] = {}
        self._over: set[_Key] = set()
        self._longest = 0.0
        self._last_return = 0.0
        self._varies = False

    @property
    def is_fixed(self) -> bool:
        """Whether the operator has set how long records stay."""
        return self._fixed is not None

    @property
    def stays(self) -> float:
        """Seconds that a record stays after it was last seen; 0 if the server returns all its records."""
        if self._fixed is not None:
            return self._fixed
        return min(MOST, max(LEAST, 2 * self._longest)) if self._varies else 0.0

    def last(self, key: _Key) -> _Value | None:
        """Return the last value of a record, if it is still known."""
        return self._seen[key][1] if key in self._seen else None

    def update(self, members: Mapping[_Key, _Value]) -> None:
        """Update the values of known records."""
        self._seen |= {key: (self._seen[key][0], value) for key, value in members.items() if key in self._seen}

    def skip(self, seconds: float, is_unread: Callable[[_Value], bool]) -> None:
        """Do not count time that has passed without answers: records were not absent then, they were not looked for.

        :param is_unread: tells for which records there was no answer, by their values.
        """
        self._seen = {
            key: (seen + seconds if is_unread(value) else seen, value) for key, (seen, value) in self._seen.items()
        }

    def read(self, members: Mapping[_Key, _Value], now: float) -> None:
        """Take one reading.

        :param members: its records, each with the value that it keeps while it stays.
        :param now: seconds of any monotonic clock.
        """
        if now - self._last_return >= FORGOTTEN:
            self._forget_returns(now)
        present = frozenset(members)
        self._settle(now)
        self._over -= present
        if self._identity is not None:
            self._replace(present, self._identity)
        if self._readings:
            for key in present - self._readings[-1]:
                if key in self._seen:
                    self._longest = max(self._longest, now - self._seen[key][0])
                    self._last_return = now
        self._readings.append(present)
        if not self._varies and _returned(self._readings) >= RETURNS:
            self._varies = True
        self._forget(now)
        self._seen |= {key: (now, value) for key, value in members.items()}

    def lingering(self, now: float) -> Mapping[_Key, _Value]:
        """Return the records that stay although the last reading lacks them."""
        self._settle(now)
        return {key: value for key, (_, value) in self._absent().items() if key not in self._over} if self.stays else {}

    def ended(self, now: float) -> Mapping[_Key, _Value]:
        """Return the records that stayed long enough and were not seen since, if they are still known."""
        self._settle(now)
        return {key: value for key, (_, value) in self._absent().items() if key in self._over} if self.stays else {}

    def next_end(self, now: float) -> float | None:
        """Return when the next lingering record ends."""
        self._settle(now)
        return min(
            (seen + self.stays for key, (seen, _) in self._absent().items() if key not in self._over), default=None
        )

    def _absent(self) -> dict[_Key, tuple[float, _Value]]:
        present = self._readings[-1] if self._readings else frozenset()
        return {key: seen for key, seen in self._seen.items() if key not in present}

    def _settle(self, now: float) -> None:
        """End the stay of records for good: a longer time to stay later does not bring them back."""
        if self.stays:
            self._over |= {key for key, (seen, _) in self._absent().items() if seen + self.stays <= now}

    def _replace(self, present: Collection[_Key], identity: Callable[[_Key], Hashable]) -> None:
        """End the stay of absent records that new ones have replaced, longest absent first."""
        new = Counter(identity(key) for key in present if key not in self._seen)
        if not new:
            return
        absent = [key for key in self._seen if key not in present and key not in self._over]
        for key in sorted(absent, key=lambda key: self._seen[key][0]):
            if new[identity(key)] > 0:
                new[identity(key)] -= 1
                self._over.add(key)

    def _forget_returns(self, now: float) -> None:
        """Trust that answers are complete again, and forget past absences, unless records linger now."""
        if not self._varies:
            self._longest = 0.0
        elif not self.lingering(now):
            self._varies, self._longest = False, 0.0
            self._readings.clear()
            self._over.clear()

    def _forget(self, now: float) -> None:
        """Drop records that are not in the last readings and would come back too late to matter."""
        recent = frozenset[_Key]().union(*self._readings)
        self._seen = {
            key: (seen, value)
            for key, (seen, value) in self._seen.items()
            if key in recent or now < seen + FORGOTTEN + self.stays
        }
        self._over &= self._seen.keys()


def _returned(readings: Iterable[frozenset[_Key]]) -> int:
    """Count the records that vanished and came back while the size of the answer varied by at most one.

    They only count if answers vary: one of them vanished again, and no reading has all records. In a rolling restart
    each record is missing once, and afterwards all are present.
    """
    sizes: list[int] = []
    held: set[_Key] = set()
    gone: set[_Key] = set()
    returned: set[_Key] = set()
    is_again = False
    for present in readings:
        sizes.append(len(present))
        is_again = is_again or not returned <= present
        returned |= gone & present
        gone |= held - present
        held |= present
    varies = is_again and max(sizes) - min(sizes) <= 1 and max(sizes) < len(held)
    return len(returned) if varies else 0
