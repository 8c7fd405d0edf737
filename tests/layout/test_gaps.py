"""Free elements of an array: first fit against a bitmap, and the bounds on what fragmentation wastes."""

from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout.gaps import Gaps, Range, Taker, between, count, joined

SIZE: Final = 64
WHOLE: Final[Gaps] = (Range(0, SIZE),)
ROUNDS: Final = st.lists(
    st.tuples(st.lists(st.integers(1, 9), max_size=12), st.lists(st.integers(0, 40), max_size=12)), max_size=8
)
"""For each round the sizes of requests, and which of the ranges in use are freed after it."""


def bits(gaps: Gaps) -> list[bool]:
    """Return which elements are free."""
    return [any(start <= element < end for start, end in gaps) for element in range(SIZE)]


def first_fit(free: list[bool], size: int) -> int | None:
    """Return the lowest position with enough free elements."""
    return next((at for at in range(SIZE - size + 1) if all(free[at : at + size])), None)


def is_in_form(gaps: Gaps) -> bool:
    """Tell whether gaps are in order, not empty, and apart."""
    edges = [edge for gap in gaps for edge in gap]
    return edges == sorted(set(edges))


@given(ROUNDS)
def test_ranges_are_those_of_a_bitmap(rounds: list[tuple[list[int], list[int]]]) -> None:
    """Each request gets the lowest free range that is large enough, and nothing freed is lost."""
    gaps, free, used = WHOLE, [True] * SIZE, list[Range]()
    for sizes, chosen in rounds:
        taker = Taker(gaps)
        for size in sizes:
            start = first_fit(free, size)
            assert taker.take(size) == start
            if start is not None:
                used.append(Range(start, start + size))
                free[start : start + size] = [False] * size
        freed = [used.pop(index) for index in chosen if index < len(used)]
        for start, end in freed:
            free[start:end] = [True] * (end - start)
        gaps = joined(taker.left(), freed)
        assert bits(gaps) == free
        assert is_in_form(gaps)
        assert count(gaps) == sum(free)
        assert between(Range(0, SIZE), used) == gaps
    assert joined(gaps, used) == WHOLE


@given(ROUNDS, st.integers(1, 12))
def test_a_bounded_number_of_elements_is_of_no_use(rounds: list[tuple[list[int], list[int]]], size: int) -> None:
    """A request fails only if every gap is too small, and there is at most one gap more than ranges in use."""
    gaps, used = WHOLE, list[Range]()
    for sizes, chosen in rounds:
        taker = Taker(gaps)
        used += [Range(at, at + one) for one in sizes if (at := taker.take(one)) is not None]
        gaps = joined(taker.left(), [used.pop(index) for index in chosen if index < len(used)])
    assert len(gaps) <= len(used) + 1
    if Taker(gaps).take(size) is None:
        assert all(end - start < size for start, end in gaps)
        assert count(gaps) <= (len(used) + 1) * (size - 1)


@given(st.integers(1, 9), ROUNDS)
def test_ranges_of_one_size_waste_less_than_one_of_them(size: int, rounds: list[tuple[list[int], list[int]]]) -> None:
    """If all requests have the same size, one succeeds as long as that many elements are free in all."""
    gaps, used = WHOLE, list[Range]()
    for sizes, chosen in rounds:
        taker = Taker(gaps)
        for _ in sizes:
            had = count(taker.left())
            at = taker.take(size)
            assert (at is None) == (had < size)
            used += [] if at is None else [Range(at, at + size)]
        gaps = joined(taker.left(), [used.pop(index) for index in chosen if index < len(used)])


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 9)).map(lambda one: Range(one[0], sum(one)))))
def test_gaps_lie_between_ranges_that_may_overlap(used: list[Range]) -> None:
    """An element is free if it is in no range; ranges may be empty, and may end after the array."""
    gaps = between(Range(0, SIZE), used)
    assert bits(gaps) == [not any(start <= element < end for start, end in used) for element in range(SIZE)]
    assert is_in_form(gaps)


def test_nothing_is_free_where_nothing_is() -> None:
    """Without gaps, no request succeeds."""
    taker = Taker(())
    assert taker.take(1) is None
    assert taker.left() == ()
    assert joined((), [Range(3, 4)]) == (Range(3, 4),)
