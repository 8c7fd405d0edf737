"""The alias table follows the weights exactly, and the weights follow RFC 2782."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clb_discovery.layout.alias import MAX_OUT_OF, AliasTable, Column, alias_table, effective_weights
from clb_discovery.model.servers import MAX_POOL, MAX_WEIGHT
from tests.support.rfc2782 import shares
from tests.support.scheduler import below

WEIGHT = st.integers(0, MAX_WEIGHT) | st.sampled_from([0, 1, MAX_WEIGHT])
WEIGHTS = st.lists(WEIGHT, min_size=1, max_size=60)
FEW_WEIGHTS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def masses(table: AliasTable) -> list[int]:
    """Return for each server the number of equally likely (column, draw) pairs that choose it."""
    mass = [column.keep for column in table.columns]
    for column in table.columns:
        mass[column.alias] += table.out_of - column.keep
    return mass


def awkward_weights() -> list[int]:
    """Return weights of a full pool whose exact ratio needs many more than 32 bits."""
    return [0 if index % 2 else MAX_WEIGHT - index % 101 for index in range(MAX_POOL)]


@given(WEIGHTS)
def test_the_table_is_exact_to_the_effective_weights(weights: list[int]) -> None:
    """The draws that a server keeps and those that others pass to it add up to exactly its part, in integers."""
    parts = effective_weights(weights)
    table = alias_table(weights)
    # Scaled by both totals, because a table of equal parts has an out_of of 1.
    assert [mass * sum(parts) for mass in masses(table)] == [part * len(parts) * table.out_of for part in parts]


@given(WEIGHTS)
def test_each_server_gets_its_rfc_2782_share(weights: list[int]) -> None:
    """The masses of the table give each server exactly its share of RFC 2782."""
    table = alias_table(weights)
    total = table.out_of * len(weights)
    assert [Fraction(mass, total) for mass in masses(table)] == shares(weights)


@given(WEIGHTS)
def test_every_column_is_in_range(weights: list[int]) -> None:
    """A column keeps 0 to out_of draws, its alias is a column, and out_of fits 32 bits."""
    table = alias_table(weights)
    assert len(table.columns) == len(weights)
    assert 1 <= table.out_of <= MAX_OUT_OF < 2**32
    assert all(0 <= column.keep <= table.out_of and 0 <= column.alias < len(weights) for column in table.columns)


@given(WEIGHTS)
def test_effective_weights_are_positive_and_as_small_as_they_can_be(weights: list[int]) -> None:
    """No server gets nothing, and the ratio is in lowest terms."""
    parts = effective_weights(weights)
    assert min(parts) >= 1
    assert [Fraction(part, sum(parts)) for part in parts] == shares(weights)
    assert effective_weights(parts) == parts


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([7], [1]),
        ([0], [1]),
        ([0, 0, 0], [1, 1, 1]),
        ([5, 5], [1, 1]),
        ([1, 3], [1, 3]),
        ([10, 20, 70], [1, 2, 7]),
        ([0, 1], [1, 1]),
        ([0, 99], [1, 99]),
        ([0, 0, 99], [1, 1, 198]),
        ([0, 65535, 65535], [1, 65535, 65535]),
    ],
)
def test_examples_of_effective_weights(weights: list[int], parts: list[int]) -> None:
    """All zeros together get one part in addition to the sum of the others; if all are zero, shares are equal."""
    assert effective_weights(weights) == parts


def test_the_example_of_the_header() -> None:
    """Weights 1 and 3 give the table that bpf/clb.h shows."""
    assert alias_table([1, 3]) == AliasTable(4, (Column(2, 1), Column(4, 1)), (1, 3))


@given(st.integers(0, MAX_WEIGHT), st.integers(1, 50))
def test_equal_weights_need_no_second_draw(weight: int, count: int) -> None:
    """If all weights are equal, each column keeps everything, so the kernel draws once."""
    table = alias_table([weight] * count)
    assert all(column.keep == table.out_of for column in table.columns)


@given(WEIGHTS, st.randoms(use_true_random=False))
def test_a_server_gets_the_same_share_wherever_it_stands(weights: list[int], random: Random) -> None:
    """The order of the servers has no effect on their shares."""
    order = list(range(len(weights)))
    random.shuffle(order)
    here, there = masses(alias_table(weights)), masses(alias_table([weights[index] for index in order]))
    assert [here[index] for index in order] == there


@given(WEIGHTS)
def test_the_table_is_a_function_of_the_weights(weights: list[int]) -> None:
    """It has nothing random and no state of a previous call, and the weights are not modified."""
    before = list(weights)
    assert alias_table(weights) == alias_table(tuple(weights))
    assert weights == before


@given(FEW_WEIGHTS)
def test_all_draws_of_a_small_table(weights: list[int]) -> None:
    """Carrying out every pair of draws that the kernel can make picks each server in its exact share."""
    table = alias_table(weights)
    picked: Counter[int] = Counter()
    for index, draw in product(range(len(weights)), range(table.out_of)):
        column = table.columns[index]
        picked[index if column.keep >= table.out_of or draw < column.keep else column.alias] += 1
    assert [Fraction(picked[index], picked.total()) for index in range(len(weights))] == shares(weights)


@given(st.integers(1, 64))
def test_every_number_below_a_bound_is_drawn_equally_often(bound: int) -> None:
    """Over all random inputs of 12 bits, the counts of any two numbers differ by at most one."""
    bits = 12
    drawn = Counter(below(bound, random, bits) for random in range(1 << bits))
    assert sorted(drawn) == list(range(bound))
    assert max(drawn.values()) - min(drawn.values()) <= 1


@given(st.integers(1, MAX_OUT_OF), st.integers(0, 2**32 - 1))
def test_a_draw_is_below_its_bound(bound: int, random: int) -> None:
    """For any 32 bits, the draw is at least 0 and below the bound, and the last input gives the last number."""
    assert 0 <= below(bound, random) < bound
    assert below(bound, 2**32 - 1) == bound - 1


def test_a_full_pool_of_awkward_weights_fits_32_bits() -> None:
    """65,536 servers whose exact ratio needs 47 bits get a table in 32 bits that is exact to the rounded parts."""
    weights = awkward_weights()
    parts = effective_weights(weights)
    table = alias_table(weights)
    assert sum(parts) <= MAX_OUT_OF
    assert table.out_of <= MAX_OUT_OF
    assert all(0 <= column.keep <= table.out_of for column in table.columns)
    assert masses(table) == [part * MAX_POOL for part in parts]


def test_rounding_stays_within_what_32_bits_can_tell() -> None:
    """If the ratio is too fine, each share is off by about one part of 2**32, and no server is left out."""
    weights = awkward_weights()
    parts = effective_weights(weights)
    total = sum(parts)
    room = MAX_OUT_OF - len(parts)
    assert min(parts) >= 1
    for share, part in set(zip(shares(weights), parts, strict=True)):
        assert abs(Fraction(part, total) - share) <= (1 + share * len(parts)) / room


@settings(max_examples=5)
@given(st.integers(2, MAX_POOL), st.integers(1, MAX_POOL), st.integers(1, MAX_WEIGHT))
def test_large_pools_fit_32_bits(count: int, period: int, weight: int) -> None:
    """Any size up to a full pool fits 32 bits, however zeros and weights alternate."""
    weights = [0 if index % (period + 1) else max(1, weight - index % 7) for index in range(count)]
    table = alias_table(weights)
    assert table.out_of <= MAX_OUT_OF
    parts = effective_weights(weights)
    total = sum(parts)
    assert masses(table) == [part * count * table.out_of // total for part in parts]
