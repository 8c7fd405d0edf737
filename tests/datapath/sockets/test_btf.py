"""The number of a kernel function, in type information of every kind."""

from __future__ import annotations

import struct
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.datapath.sockets import btf

MEMBER_SIZES: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
FIXED_SIZES: Final = {1: 4, 3: 12, 14: 4, 17: 4}
KINDS: Final = range(1, 20)


def kind_of(kind: int, members: int = 0, name: int = 0) -> bytes:
    """Return one type with arbitrary contents."""
    more = MEMBER_SIZES.get(kind, 0) * members + FIXED_SIZES.get(kind, 0)
    count = members if kind in MEMBER_SIZES else 0
    return struct.pack("=III", name, kind << 24 | count, 4) + b"\xff" * more


def function(name: int) -> bytes:
    """Return a function."""
    return kind_of(12, name=name)


def document(types: bytes, names: bytes = b"\0first\0wanted\0") -> bytes:
    """Return BTF; `wanted` is the name at 7."""
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5)), max_size=30))
def test_types_of_every_kind_are_counted(before: list[tuple[int, int]]) -> None:
    """The number of a function is its position among all types, whatever types come before it."""
    types = b"".join(kind_of(kind, members) for kind, members in before)
    found = btf.function_ids(document(types + function(7) + function(1)), ["wanted", "first"])
    assert found == {"wanted": len(before) + 1, "first": len(before) + 2}


def test_only_a_function_of_the_whole_name_is_meant() -> None:
    """A structure with the name, and a function with another name, are skipped."""
    types = kind_of(4, name=7) + function(1)
    assert btf.function_ids(document(types), ["wanted", "want", "first"]) == {"first": 2}


def test_a_kind_that_is_not_known_is_an_error() -> None:
    """A type of an unknown kind cannot be skipped, so all later numbers would be guesses."""
    with pytest.raises(ValueError, match="kind 31"):
        btf.function_ids(document(kind_of(31) + function(7)), ["wanted"])


def test_what_is_not_btf_is_an_error() -> None:
    """An empty file or another format is an error, not a missing function."""
    for data in (b"", bytes(64)):
        with pytest.raises(ValueError, match="BTF"):
            btf.function_ids(data, ["wanted"])


@given(st.integers(0, len(document(function(7))) - len(b"\0first\0wanted\0") - 1))
def test_btf_that_is_cut_off_is_an_error_or_lacks_the_function(size: int) -> None:
    """A truncated document never gives a number."""
    try:
        assert btf.function_ids(document(function(7))[:size], ["wanted"]) == {}
    except ValueError:
        return
