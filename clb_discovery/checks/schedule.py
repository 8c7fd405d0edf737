"""When each check is due: at its own interval, in an order that spreads them over time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush

from clb_discovery.model.check import Target


class Schedule:
    """The checks that wait and those that run; at most a fixed number run at a time."""

    def __init__(self, most: int, jitter: Callable[[], float]) -> None:
        """Start with none.

        :param most: how many may run at a time.
        :param jitter: returns a random number from 0 to 1.
        """
        self._most = most
        self._jitter = jitter
        self._due: dict[Target, float] = {}  # of each target; of one that runs, when it was due
        self._waiting: list[tuple[float, int, Target]] = []  # a heap; entries that `_due` contradicts are void
        self._running: set[Target] = set()
        self._hurried: dict[Target, float] = {}  # when, of those that were
        self._number = 0  # breaks ties in the heap, in the order of entry

    def follow(self, targets: Collection[Target], now: float, down: Collection[Target] = ()) -> None:
        """Check these from now on, and no others. The first check of a new one is due within its interval.

        :param down: those whose first check is due at once, because only a lease keeps them out.
        """
        for target in self._due.keys() - targets:
            del self._due[target]
        for target in targets:
            if target not in self._due:
                pause = 0.0 if target in down else self._jitter() * target.check.interval
                self._put(target, now + pause)
        self._hurried = {
            target: at
            for target, at in self._hurried.items()
            if now < at + target.check.interval and target in self._due
        }
        if len(self._waiting) > 2 * len(self._due):
            self._waiting = [entry for entry in self._waiting if self._holds(entry)]
            heapify(self._waiting)

    def hurry(self, target: Target, now: float, pause: float) -> bool:
        """Let a check be due now, unless it runs, or was hurried less than this pause ago.

        :param pause: in seconds; the interval of the check at most.
        :returns: whether it is due now because of this call.
        """
        if target in self._running or self._due.get(target, now) <= now:
            return False
        if target in self._hurried and now < self._hurried[target] + pause:
            return False
        self._hurried[target] = now
        self._put(target, now)
        return True

    def take(self, now: float) -> list[Target]:
        """Return the checks to start now, the most overdue first. Each runs until `done`."""
        taken = []
        while len(self._running) < self._most and self.next_due() <= now:
            _, _, target = heappop(self._waiting)
            self._running.add(target)
            taken.append(target)
        return taken

    def due(self, target: Target) -> float:
        """Return when the check that runs was due."""
        return self._due[target]

    def done(self, target: Target, now: float) -> None:
        """Note that a check has ended. The next one is due an interval after this one was, or now if that is over."""
        self._running.remove(target)
        if target in self._due:
            self._put(target, max(now, self._due[target] + target.check.interval))

    def pause(self, now: float) -> float | None:
        """Return the seconds until another check can start; None if one has to end first, or none waits."""
        due = self.next_due()
        if len(self._running) >= self._most or due == float("inf"):
            return None
        return max(0.0, due - now)

    def next_due(self) -> float:
        """Return when the next check is due, even if too many run now; infinity if none waits."""
        while self._waiting and not self._holds(self._waiting[0]):
            heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else float("inf")

    def _put(self, target: Target, due: float) -> None:
        self._due[target] = due
        if target not in self._running:  # else it waits again when it is done
            self._number += 1
            heappush(self._waiting, (due, self._number, target))

    def _holds(self, entry: tuple[float, int, Target]) -> bool:
        due, _, target = entry
        return self._due.get(target) == due and target not in self._running
