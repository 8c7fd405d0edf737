"""Real servers that were removed from their pools, until their sockets are closed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.model.servers import Protocol

FIRST_PAUSE: Final = 1.0
"""Seconds after the first failure; the pause doubles with each failure."""
MOST_TRIES: Final = 6
"""Attempts before giving up; the log has told the operator how to fix the cause."""


class Leaving:
    """The packed members whose sockets have to be closed, with retries. Times are seconds of any one clock."""

    def __init__(self) -> None:
        """Start with none."""
        self._tries: dict[bytes, int] = {}  # of each member
        self._new: set[bytes] = set()  # those that were added since the last try began
        self.next_try: float | None = None
        """Time of the next attempt after a failure; None if none is pending."""

    def add(self, members: Iterable[bytes]) -> None:
        """Add removed members. They are due at once, together with those that wait for a retry."""
        new = frozenset(members)
        if new:
            self._tries |= dict.fromkeys(new, 0)
            self._new |= new
            self.next_try = None

    def due(self, installed: Installed, protocols: Collection[Protocol], now: float) -> frozenset[bytes]:
        """Return the members whose sockets have to be closed now.

        :param installed: the installed state. A member that is back in its pool keeps its sockets.
        :param protocols: the protocols whose sockets are closed. Members of others drain and are forgotten.
        """
        self._tries = {
            one: tries
            for one, tries in self._tries.items()
            if elements.protocol_of(one) in protocols and not _is_member(installed, one)
        }
        if not self._tries:
            self.next_try = None
        if self.next_try is not None and now < self.next_try:
            return frozenset()
        self._new.clear()
        return frozenset(self._tries)

    def tried(self, members: AbstractSet[bytes], now: float, *, succeeded: bool) -> None:
        """Record the result of closing the sockets of members that were due.

        It says nothing about those that have been added since: they may have been back in their pools meanwhile.
        """
        for one in members & self._tries.keys() - self._new:
            self._tries[one] += 1
            if succeeded or self._tries[one] >= MOST_TRIES:
                del self._tries[one]
        fewest = min(self._tries.values(), default=0)
        self.next_try = now + FIRST_PAUSE * 2 ** (fewest - 1) if fewest else None


def _is_member(installed: Installed, member: bytes) -> bool:
    published = installed.virtual.get(elements.unpack_vip(elements.unpack_member(member)[0]))
    return published is not None and member in published.servers
