"""Name servers that give another part of their records each time, and how long records then stay. Pure.

AWS Cloud Map gives 8 records at random, weighted records come one at a time, and Consul trims what does not fit. Taken
at their word they would make a pool flap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
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

    def __init__(self, fixed: float | None = None) -> None:
        """Have seen nothing.

        :param fixed: seconds that records stay after they were last seen, whatever the server does; 0 for never.
        """
        self._fixed = fixed
        self._readings: deque[frozenset[_Key]] = deque(maxlen=READINGS)
        self._seen: dict[_Key, tuple[float, _Value]] = {}
        self._over: set[_Key] = set()
        self._longest = 0.0
        self._last_return = 0.0
        self._varies = False

    @property
    def stays(self) -> float:
        """Seconds that a record stays after it was last seen; 0 where the server gives all its records."""
        if self._fixed is not None:
            return self._fixed
        return min(MOST, max(LEAST, 2 * self._longest)) if self._varies else 0.0

    def read(self, members: Mapping[_Key, _Value], now: float) -> None:
        """Take one reading.

        :param members: its records; the value of each is what it has while it stays. An empty one says nothing new.
        :param now: seconds on any steady clock.
        """
        if self._varies and now - self._last_return >= FORGOTTEN and not self.lingering(now):
            self._varies, self._longest = False, 0.0
            self._readings.clear()
            self._over.clear()
        present = frozenset(members)
        self._settle(now)
        self._over -= present
        if self._readings:
            for key in present - self._readings[-1]:
                if key in self._seen:
                    self._longest = max(self._longest, now - self._seen[key][0])
                    self._last_return = now
        self._readings.append(present)
        if not self._varies and _returned(self._readings) >= RETURNS:
            self._varies = True
        self._forget(now)
        for key, value in members.items():
            last = self._seen.get(key)
            self._seen[key] = (now, value if value or last is None else last[1])

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
    """Count the records that vanished and came back while the size of the answer stayed within one."""
    sizes: list[int] = []
    held: set[_Key] = set()
    gone: set[_Key] = set()
    returned: set[_Key] = set()
    for present in readings:
        sizes.append(len(present))
        returned |= gone & present
        gone |= held - present
        held |= present
    return len(returned) if sizes and max(sizes) - min(sizes) <= 1 else 0
