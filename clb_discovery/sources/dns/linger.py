"""Name servers that give another part of their records each time, and how long records then stay. Pure.

AWS Cloud Map gives 8 records at random, weighted records come one at a time, and Consul trims what does not fit. Taken
at their word they would make a pool flap.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Final, Generic, TypeVar

READINGS: Final = 10
"""Readings that are looked at."""
RETURNS: Final = 3
"""Records that have vanished and come back within them, from which on the server gives varying parts."""
FORGOTTEN: Final = 900.0
"""Seconds without a return after which it does not any more."""
LEAST: Final = 60.0
MOST: Final = 600.0
"""Seconds: the bounds of how long a record stays; within them twice the longest absence that ended in a return."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Linger(Generic[_Key, _Value]):
    """The records of one name over its readings, and those that stay although the last reading lacks them."""

    def __init__(self, fixed: float | None = None, *, identity: Callable[[_Key], Hashable] | None = None) -> None:
        """Have seen nothing.

        :param fixed: seconds that records stay after they were last seen, whatever the server does; 0 for never.
        :param identity: what a record still is when it moves: a new one takes the place of an absent one of the same
            identity, which stays no longer. None where records never move.
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
        """Whether it is the operator who says how long records stay."""
        return self._fixed is not None

    @property
    def stays(self) -> float:
        """Seconds that a record stays after it was last seen; 0 where the server gives all its records."""
        if self._fixed is not None:
            return self._fixed
        return min(MOST, max(LEAST, 2 * self._longest)) if self._varies else 0.0

    def last(self, key: _Key) -> _Value | None:
        """Return the last value of a record, as long as it is known."""
        return self._seen[key][1] if key in self._seen else None

    def update(self, members: Mapping[_Key, _Value]) -> None:
        """Take news of the values of records, of the last reading or an earlier one."""
        self._seen |= {key: (self._seen[key][0], value) for key, value in members.items() if key in self._seen}

    def read(self, members: Mapping[_Key, _Value], now: float) -> None:
        """Take one reading.

        :param members: its records; the value of each is what it has while it stays.
        :param now: seconds on any steady clock.
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
        """Return the records whose time to stay is over and that were not seen since, as long as they are known."""
        self._settle(now)
        return {key: value for key, (_, value) in self._absent().items() if key in self._over} if self.stays else {}

    def next_end(self, now: float) -> float | None:
        """Return when the time of the next lingering record is over."""
        self._settle(now)
        return min(
            (seen + self.stays for key, (seen, _) in self._absent().items() if key not in self._over), default=None
        )

    def _absent(self) -> dict[_Key, tuple[float, _Value]]:
        present = self._readings[-1] if self._readings else frozenset()
        return {key: seen for key, seen in self._seen.items() if key not in present}

    def _settle(self, now: float) -> None:
        """Let the time of records be over, once and for all: a longer one does not bring them back."""
        if self.stays:
            self._over |= {key for key, (seen, _) in self._absent().items() if seen + self.stays <= now}

    def _replace(self, present: Collection[_Key], identity: Callable[[_Key], Hashable]) -> None:
        """Let the time of absent records be over in whose place there are new ones, of those absent for longest."""
        new = Counter(identity(key) for key in present if key not in self._seen)
        if not new:
            return
        absent = [key for key in self._seen if key not in present and key not in self._over]
        for key in sorted(absent, key=lambda key: self._seen[key][0]):
            if new[identity(key)] > 0:
                new[identity(key)] -= 1
                self._over.add(key)

    def _forget_returns(self, now: float) -> None:
        """Take the server at its word again, and its absences for what they were, unless records stay meanwhile."""
        if not self._varies:
            self._longest = 0.0
        elif not self.lingering(now):
            self._varies, self._longest = False, 0.0
            self._readings.clear()
            self._over.clear()

    def _forget(self, now: float) -> None:
        """Drop records that are neither in the last readings nor may come back in time to matter."""
        recent = frozenset[_Key]().union(*self._readings)
        self._seen = {
            key: (seen, value)
            for key, (seen, value) in self._seen.items()
            if key in recent or now < seen + FORGOTTEN + self.stays
        }
        self._over &= self._seen.keys()


def _returned(readings: Iterable[frozenset[_Key]]) -> int:
    """Count the records that vanished and came back while the size of the answer stayed within one.

    They count where answers vary: one of them vanished again, and no reading has all of them. In a rolling restart each
    is away once, and after it all are there.
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
