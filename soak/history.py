"""The record of all changes with their times, so that a connect can be judged by the state at its time.

Times are nanoseconds of CLOCK_MONOTONIC. Each change is recorded before and after: both states count as true in
between.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, TextIO

from soak.scene import Way

FOREVER: Final = 1 << 63
SECOND: Final = 1_000_000_000
MACHINE: Final = "machine"
"""In `History.troubled`: this machine is too busy for any time limit."""
BUSY: Final = "busy"
"""Likewise: it is too busy for the time limits of suspicion."""


class Event(NamedTuple):
    """One event."""

    time: int
    actor: str
    what: str


class Spans:
    """Intervals in which something was true; they may overlap, and some may not have ended."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._open: set[int] = set()
        self._longest = 0  # of the ended ones

    def open(self, start: int) -> int:
        """Begin an interval, not earlier than any before; return its number."""
        number = len(self._starts)
        self._open.add(number)
        self._ends.append(FOREVER)
        self._starts.append(max([start, *self._starts[-1:]]))
        return number

    def close(self, end: int, number: int | None = None) -> None:
        """End an interval.

        :param number: by default the one that began last.
        """
        number = len(self._starts) - 1 if number is None else number
        self._longest = max(self._longest, end - self._starts[number])
        self._ends[number] = end
        self._open.discard(number)

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the intervals that overlap with this one, earliest first."""
        found = []
        oldest = min([*self._open, len(self._starts)])
        for number in range(bisect.bisect_right(self._starts, end) - 1, -1, -1):
            if self._ends[number] >= start:
                found.append((self._starts[number], self._ends[number]))
            elif number < oldest and self._starts[number] < start - self._longest:
                break
        return found[::-1]

    def ended_before(self, moment: int) -> int | None:
        """Return the end of the last interval that had begun by then, or None; for intervals that do not overlap."""
        number = bisect.bisect_right(self._starts, moment)
        return self._ends[number - 1] if number else None


def outside(start: int, end: int, *those: Spans) -> int:
    """Return how much of the time between is in none of the intervals."""
    left, reached = 0, start
    for first, last in sorted(span for spans in those for span in spans.within(start, end)):
        left += max(0, first - reached)
        reached = max(reached, last)
    return left + max(0, end - reached)


class History:
    """The events of a run, and the intervals that follow from them. For many threads."""

    def __init__(self, output: TextIO) -> None:
        """Start without events.

        :param output: gets a line for every event as it happens.
        """
        self.start = time.monotonic_ns()
        self._events: list[Event] = []
        self._output = output
        self._lock = threading.Lock()
        self.members: defaultdict[tuple[str, int], Spans] = defaultdict(Spans)
        """By service and number of the real server: intervals in which discovery may have it."""
        self.failing: defaultdict[tuple[Way, int], Spans] = defaultdict(Spans)
        """By way and number of the real server: intervals in which it may have failed in this way."""
        self.troubled: defaultdict[str, Spans] = defaultdict(Spans)
        """Intervals in which a kind of source, an instance of the sidecar or the machine may be late."""

    def note(self, actor: str, what: str) -> int:
        """Record an event that happens now, and return the time."""
        with self._lock:
            event = Event(time.monotonic_ns(), actor, what)
            self._events.append(event)
            print(self.line(event), file=self._output, flush=True)
        return event.time

    def line(self, event: Event) -> str:
        """Return an event as text."""
        return f"{(event.time - self.start) / SECOND:10.3f}  {event.actor:<10}{event.what}"

    def around(self, moment: int, seconds: float = 2.0) -> list[str]:
        """Return the lines of the events around a moment."""
        margin = round(seconds * SECOND)
        with self._lock:
            return [self.line(event) for event in self._events if abs(event.time - moment) <= margin]

    @contextmanager
    def trouble(self, what: str, *, again: float = 1.0, more: float = 3.0) -> Iterator[None]:
        """Record the block and the recovery after it as an interval in which this may be late.

        :param again: the block's length times this; a failing source doubles its pauses, so the recovery may take that
            long.
        :param more: seconds on top.
        """
        start = time.monotonic_ns()
        number = self.troubled[what].open(start)
        try:
            yield
        finally:
            end = time.monotonic_ns()
            self.troubled[what].close(end + round((end - start) * again + more * SECOND), number)

    def join(self, service: str, number: int) -> None:
        """Record that discovery is about to get a real server."""
        self.members[service, number].open(time.monotonic_ns())

    def leave(self, service: str, number: int) -> None:
        """Record that discovery no longer has it."""
        self.members[service, number].close(time.monotonic_ns())
