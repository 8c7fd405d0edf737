"""The free elements of an array, and how consecutive ones are given out: first fit, with coalescing.

What is free is a sequence of gaps between the ranges in use. A request takes the beginning of the lowest gap that is
large enough, so elements in use stay near the beginning, where readers find them with few calls. Freed ranges become
one gap with their free neighbours. Ranges are never moved, so gaps may be too small for a request. This is bounded:

- a request for n elements fails only if every gap has fewer than n. There is at most one gap more than ranges in use;
  so of R ranges in use, at most (R + 1) * (n - 1) free elements are of no use for it;
- if all ranges have the same size, at most size - 1 free elements are of no use;
- when all ranges are free again, there is one gap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Range(NamedTuple):
    """Consecutive elements."""

    start: int
    end: int
    """The first element after them."""


Gaps = tuple[Range, ...]
"""Free ranges in order; between any two of them is at least one element that is in use."""


def between(whole: Range, used: Iterable[Range]) -> Gaps:
    """Return the gaps between ranges in use, which may overlap or be empty, and are in any order."""
    gaps = []
    start = whole.start
    for one in sorted(one for one in used if one.start < one.end):
        end = min(one.start, whole.end)
        if start < end:
            gaps.append(Range(start, end))
        start = max(start, one.end)
    if start < whole.end:
        gaps.append(Range(start, whole.end))
    return tuple(gaps)


def joined(gaps: Gaps, freed: Iterable[Range]) -> Gaps:
    """Return the gaps after ranges in use were freed.

    :param freed: disjoint ranges outside of the gaps, in any order.
    """
    whole: list[Range] = []
    for one in sorted([*gaps, *freed]):
        if whole and whole[-1].end == one.start:
            whole[-1] = Range(whole[-1].start, one.end)
        else:
            whole.append(one)
    return tuple(whole)


def count(gaps: Gaps) -> int:
    """Return the number of free elements."""
    return sum(end - start for start, end in gaps)


class Taker:
    """Takes ranges from gaps."""

    def __init__(self, gaps: Gaps) -> None:
        self._gaps = gaps
        self._starts: list[int] | None = None  # of the gaps, after what was taken of each
        self._first: dict[int, int] = {}  # by size of a request: all gaps before this one are too small for it

    def take(self, size: int) -> int | None:
        """Return the first of consecutive elements, which are not free any more; None if no gap is large enough."""
        if self._starts is None:
            self._starts = [start for start, _ in self._gaps]
        # While ranges are only taken, gaps only shrink: those that were too small for fewer elements still are.
        at = max((first for asked, first in self._first.items() if asked <= size), default=0)
        while at < len(self._gaps) and self._gaps[at].end - self._starts[at] < size:
            at += 1
        self._first[size] = at
        if at == len(self._gaps):
            return None
        start = self._starts[at]
        self._starts[at] += size
        return start

    def left(self) -> Gaps:
        """Return the gaps that are left."""
        if self._starts is None:
            return self._gaps
        return tuple(Range(start, end) for start, (_, end) in zip(self._starts, self._gaps, strict=True) if start < end)
