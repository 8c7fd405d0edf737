"""How much stack the compiled programs use: one kernel refuses what another one accepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.layout.test_structs import OBJECTS
from tests.support.elf import Function, Place, functions

LIMIT: Final = 512
"""Bytes of a program and everything that it calls (MAX_BPF_STACK)."""
GRAIN: Final = 32
"""Kernels up to 6.7 round the stack of each function up to this; later ones to 16 (check_max_stack_depth)."""
DEEPEST: Final = 8
"""Most functions in each other, the program among them (MAX_CALL_FRAMES)."""


def longest(found: Mapping[Place, Function], place: Place) -> tuple[int, list[str]]:
    """Return the most bytes that a function and all that it calls use at a time, with the names on that way."""
    own = -(-max(found[place].stack, 1) // GRAIN) * GRAIN
    below, names = max((longest(found, one) for one in found[place].calls), default=(0, []))
    return own + below, [found[place].name, *names]


def depth(found: Mapping[Place, Function], place: Place) -> int:
    """Return how many functions are in each other at most."""
    return 1 + max((depth(found, one) for one in found[place].calls), default=0)


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: str(path.name))
def test_every_kernel_has_enough_stack(path: Path) -> None:
    """Linux 6.1 counts most; newer kernels, where the other tests run, accept more."""
    found = functions(path.read_bytes())
    programs = {one.name: longest(found, place) for place, one in found.items() if one.section != ".text"}
    assert len(programs) == 10
    assert {name: used for name, used in programs.items() if used[0] > LIMIT} == {}


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: str(path.name))
def test_functions_are_not_too_deep_in_each_other(path: Path) -> None:
    """The verifier follows a limited number of calls."""
    found = functions(path.read_bytes())
    assert max(depth(found, place) for place in found) <= DEEPEST


def test_calls_by_the_kernel_are_seen() -> None:
    """A function that bpf_loop calls uses stack on top of the one that calls bpf_loop."""
    found = functions(OBJECTS[0].read_bytes())
    calls = {one.name: {found[callee].name for callee in one.calls} for one in found.values()}
    assert calls["clb_half_stays"] == {"clb_count_row"}
    assert "clb_ended_early" in calls["clb_gives_up"]
