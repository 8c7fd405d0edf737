"""The schedulers, on the tables that plans write: each follows the weights in its own way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import elements
from clb_discovery.layout.elements import Slot
from clb_discovery.layout.slots import pool_slots
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import MAX_TIERS, MAX_WEIGHT, Pool, Protocol, RealServer, Vip
from tests.support.rfc2782 import shares
from tests.support.scheduler import (
    FEW,
    OVERLOADED,
    TIERS,
    Tier,
    is_less_loaded,
    is_spared,
    least_of_few,
    least_of_two,
    next_tier,
    round_robin,
    weighted_random,
)
from tests.support.simulator import numbered

BPF: Final = Path(__file__).parents[2] / "bpf"
KEY: Final = elements.pack_vip(Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP))

FEW_WEIGHTS: Final = st.lists(st.integers(0, 9), min_size=1, max_size=6)
TIERED_WEIGHTS: Final = st.lists(FEW_WEIGHTS, min_size=1, max_size=3)
START: Final = st.integers(0, 2**32)
"""The turn at which a test begins."""
BITS: Final = st.integers(0, 2**32 - 1)


def tiered(*tiers: Sequence[int]) -> list[Slot]:
    """Return the slots of a pool with these weights, tier by tier."""
    pool: Pool = tuple(
        RealServer(priority, parse_address(f"10.0.{priority}.{host}"), 80, weight)
        for priority, weights in enumerate(tiers)
        for host, weight in enumerate(weights)
    )
    return pool_slots(pool, numbered(KEY, pool).items())


def each_tier(slots: Sequence[Slot]) -> Iterator[Tier]:
    """Walk over the tiers in the way of the programs."""
    tier: Tier | None = Tier(0, slots[0].tier)
    while tier:
        yield tier
        tier = next_tier(slots, tier)


def in_turn(slots: Sequence[Slot], tier: Tier, start: int, turns: int) -> list[int]:
    """Return the servers of consecutive turns."""
    return [round_robin(slots, tier, turn) for turn in range(start, start + turns)]


def shares_of(picked: Iterable[int], tier: Tier) -> list[Fraction]:
    """Return the share of each server in the picks, all of which must be in the tier."""
    count = Counter(picked)
    own = range(tier.first, tier.first + tier.size)
    assert count.keys() <= set(own)
    return [Fraction(count[index], count.total()) for index in own]


@given(TIERED_WEIGHTS, START)
def test_round_robin_follows_the_weights_exactly(tiers: list[list[int]], start: int) -> None:
    """In out_of * tier consecutive turns from any start, each server of a tier gets exactly its share."""
    slots = tiered(*tiers)
    for tier, weights in zip(each_tier(slots), tiers, strict=True):
        turns = slots[tier.first].out_of * tier.size
        assert shares_of(in_turn(slots, tier, start, turns), tier) == shares(weights)


@given(st.integers(0, MAX_WEIGHT), st.integers(1, 50), START)
def test_round_robin_over_equal_weights_is_exactly_even(weight: int, count: int, start: int) -> None:
    """In each round of consecutive turns, each server gets exactly one turn, in the same order."""
    slots, tier = tiered([weight] * count), Tier(0, count)
    turns = in_turn(slots, tier, start, 3 * count)
    assert sorted(turns[:count]) == list(range(count))
    assert turns[:count] == turns[count : 2 * count] == turns[2 * count :]


@given(st.lists(st.integers(0, MAX_WEIGHT), min_size=1, max_size=8), START, st.integers(1, 200))
def test_round_robin_is_never_far_from_the_weights(weights: list[int], start: int, turns: int) -> None:
    """After any number of turns, a server is off its share by at most one for each column leading to it, plus two."""
    slots, tier = tiered(weights), Tier(0, len(weights))
    count = Counter(in_turn(slots, tier, start, turns))
    for index, share in enumerate(shares(weights)):
        columns = sum(index in {at, slot.alias} for at, slot in enumerate(slots))
        assert abs(count[index] - share * turns) <= columns + 2


@given(st.integers(0, 40), st.integers(0, 40), START)
def test_a_column_keeps_its_turns_evenly_spread(keep: int, more: int, start: int) -> None:
    """In any number of consecutive rounds, a column is off its share by at most one, so no server waits for long."""
    out_of = max(1, keep + more)
    slot = Slot(bytes(40), 0, 0, keep=keep, out_of=out_of, alias=1, first=0, tier=1, share=1, weight=1, priority=0)
    kept = 0
    for rounds in range(1, 2 * out_of + 1):
        kept += round_robin([slot], Tier(0, 1), start + rounds) == 0
        assert abs(kept - Fraction(rounds * keep, out_of)) < 1
    assert kept == 2 * keep


def test_round_robin_in_full() -> None:
    """Weights 1 and 3, whose table bpf/clb.h shows, give this order."""
    assert in_turn(tiered([1, 3]), Tier(0, 2), 0, 8) == [0, 1, 1, 1, 0, 1, 1, 1]


def test_round_robin_skips_nobody_when_drawn_again() -> None:
    """If one of three equal servers is ejected and its turn goes to the next, the other two have equal shares."""
    slots, tier = tiered([1, 1, 1]), Tier(0, 3)
    taken = [index for index in in_turn(slots, tier, 0, 300) if index != 1]
    assert Counter(taken) == {0: 100, 2: 100}


@given(TIERED_WEIGHTS, BITS)
def test_a_draw_stays_in_its_tier(tiers: list[list[int]], bits: int) -> None:
    """For any random bits, random picks a server of the given tier."""
    slots = tiered(*tiers)
    for tier in each_tier(slots):
        index = weighted_random(slots, tier, bits)
        assert tier.first <= index < tier.first + tier.size


@given(st.lists(st.integers(0, MAX_WEIGHT), min_size=1, max_size=8), st.integers(0, 2**20 - 1))
def test_one_draw_is_enough_for_the_weights(weights: list[int], start: int) -> None:
    """Over evenly spread draws, each server is off its share by at most two for each column that leads to it."""
    slots, tier = tiered(weights), Tier(0, len(weights))
    draws = range(start, 2**32, 2**20)
    count = Counter(weighted_random(slots, tier, bits) for bits in draws)
    for index, share in enumerate(shares(weights)):
        columns = sum(index in {at, slot.alias} for at, slot in enumerate(slots))
        assert abs(count[index] - share * len(draws)) <= 2 * columns


@given(TIERED_WEIGHTS)
def test_programs_find_each_tier(tiers: list[list[int]]) -> None:
    """The first slot of a tier gives its start and its size, and so the start of the next tier."""
    slots = tiered(*tiers)
    found = list(each_tier(slots))
    assert [tier.size for tier in found] == [len(weights) for weights in tiers]
    assert [tier.first for tier in found] == [slot.first for slot in slots if slot.first == slots.index(slot)]


def held(weights: Sequence[int], connections: int, seed: int, before: int = 0) -> list[int]:
    """Return active connections by server of a tier after as many connects under least-conn, none of which ends.

    :param before: servers of a lower tier, which get no connects.
    """
    random = Random(seed)  # noqa: S311
    slots = tiered(*([1] * before, weights) if before else [weights])
    tier, active = Tier(before, len(weights)), [0] * len(slots)
    for _ in range(connections):
        bits = [random.getrandbits(32) for _ in range(3)]
        chances = [random.random() for _ in weights]
        few = tier.size <= FEW
        picked = least_of_few(slots, tier, active, bits[0], chances) if few else least_of_two(slots, tier, active, bits)
        active[picked] += 1
    return active[before:]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", [[1] * 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], ids=str)
def test_least_conn_keeps_close_to_the_ideal(weights: list[int], seed: int) -> None:
    """With connections that stay, each server is within 5 of its share; random is off by tens."""
    connections = 10_000
    active = held(weights, connections, seed)
    for index, share in enumerate(shares(weights)):
        assert abs(active[index] - share * connections) <= 5


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=FEW), st.integers(1, 300), st.integers(0, 8), st.integers(0, 99)
)
def test_least_conn_is_exact_in_a_tier_of_few(weights: list[int], connections: int, before: int, seed: int) -> None:
    """For any order of connects, no server has more than one connection above its share."""
    active = held(weights, connections, seed, before)
    for one, weight in zip(active, weights, strict=True):
        assert (one - 1) * sum(weights) <= weight * connections


@given(st.lists(st.integers(0, 9), min_size=1, max_size=FEW), st.integers(0, 2**20 - 1))
def test_least_conn_among_equals_is_a_weighted_draw(weights: list[int], start: int) -> None:
    """If all servers are idle, the one drawn by weight is chosen, including those of weight 0."""
    slots, tier = tiered(weights), Tier(0, len(weights))
    for bits in range(start, 2**32, 2**26):
        drawn = weighted_random(slots, tier, bits)
        assert least_of_few(slots, tier, [0] * len(weights), bits, [0.0] * len(weights)) == drawn


@given(st.lists(st.integers(0, 9), min_size=9, max_size=20), st.lists(BITS, min_size=3, max_size=3))
def test_two_choices_are_two_servers(weights: list[int], bits: list[int]) -> None:
    """The only server with connections is never chosen while others have a weight."""
    slots, tier = tiered(weights), Tier(0, len(weights))
    busy = weighted_random(slots, tier, bits[0])
    loads = [OVERLOADED if index == busy else 0 for index in range(len(weights))]
    chosen = least_of_two(slots, tier, loads, bits)
    assert chosen != busy or any(is_spared(slot) for slot in slots)


def slots_with(*weights: int) -> list[Slot]:
    """Return one slot for each weight, in a tier of its own."""
    return tiered(*([weight] for weight in weights))


LOAD: Final = st.integers(0, 2**32 - 1) | st.just(OVERLOADED)
WEIGHT: Final = st.integers(0, MAX_WEIGHT)


@given(WEIGHT, LOAD, WEIGHT, LOAD)
def test_one_of_two_servers_is_always_less_loaded(weight_a: int, load_a: int, weight_b: int, load_b: int) -> None:
    """Of any two servers, at least one is at most as loaded as the other; both are only if the loads are equal."""
    a, b = slots_with(weight_a, weight_b)
    per_weight_a = Fraction(load_a, 256 * weight_a or 1)
    per_weight_b = Fraction(load_b, 256 * weight_b or 1)
    assert is_less_loaded(a, load_a, b, load_b) is (per_weight_a <= per_weight_b)
    assert is_less_loaded(b, load_b, a, load_a) is (per_weight_b <= per_weight_a)


@given(WEIGHT, WEIGHT)
def test_an_idle_server_is_never_more_loaded(one: int, other: int) -> None:
    """Of two idle servers, the first drawn wins, which follows the weights; a single idle one always wins."""
    a, b = slots_with(one, other)
    assert is_less_loaded(a, 0, b, 0)
    assert is_less_loaded(a, 0, b, 1)
    assert not is_less_loaded(a, 1, b, 0)


@given(st.integers(1, MAX_WEIGHT), st.integers(1, MAX_WEIGHT), st.integers(0, 2**23 - 1))
def test_a_server_that_is_kept_away_is_more_loaded(out: int, other: int, active: int) -> None:
    """For any weights, it is more loaded than another server with eight million connections."""
    a, b = slots_with(out, other)
    assert not is_less_loaded(a, OVERLOADED, b, active)
    assert is_less_loaded(b, active, a, OVERLOADED)


@given(WEIGHT, LOAD, WEIGHT, LOAD)
def test_loads_fit_the_words_of_the_kernel(weight_a: int, load_a: int, weight_b: int, load_b: int) -> None:
    """No compared product exceeds 64 bits, so that the mirror and the kernel cannot differ."""
    assert load_a * (weight_b * 256 or 1) < 2**64
    assert load_b * (weight_a * 256 or 1) < 2**64


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [("slot.h", "TIERS", TIERS), ("slot.h", "TIERS", MAX_TIERS)],
)
def test_numbers_are_those_of_the_programs(file: str, name: str, value: int) -> None:
    """The mirror of the schedulers has the same limits as the programs."""
    assert re.findall(rf"^#define CLB_{name} (\d+)$", (BPF / file).read_text(), re.MULTILINE) == [str(value)]


FORMULAS: Final[Mapping[str, str]] = {
    "column": "column = now % search->tier;",
    "round": "round = now / search->tier + column;",
    "kept": "(round * slot->keep) % slot->out_of >= slot->keep",
    "draw": "draw = (__u64)clb_roll() * search->tier;",
    "drawn column": "search->first + (__u32)(draw >> 32)",
    "keeps all": "slot->keep >= slot->out_of",
    "passes on": "(((__u64)(__u32)draw * slot->out_of) >> 32) >= slot->keep",
    "weight": "return slot->weight ? slot->weight * 256 : 1;",
    "load": "return clb_load(a, steered) * clb_weight(b) <= clb_load(b, steered) * clb_weight(a);",
    "spared": "return !slot->weight && slot->keep < slot->out_of;",
    "another": "index = search->first + clb_below(others);",
    "overload": "#define CLB_OVERLOADED (1ULL << 39)",
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
def test_the_mirrored_formulas_are_those_of_the_programs(formula: str) -> None:
    """A changed formula of a scheduler fails here, because its mirror in these tests has to change, too."""
    assert formula in " ".join((BPF / "schedule.h").read_text().split())
