"""A small part of `make fuzz`: hundreds of inputs in place of millions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.targets import TARGETS


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Return well-formed inputs with lost, repeated or invented pieces."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        data = data[:start] + draw(st.just(b"") | st.just(2 * data[start:end]) | st.binary(max_size=8)) + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    """Every input is read, or rejected with an error that the reader declares."""
    target = TARGETS[name]

    @given(damaged(target.seeds) | st.binary(max_size=300))
    def is_read(data: bytes) -> None:
        target.read(data)

    is_read()


@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_starts_from_valid_inputs(name: str) -> None:
    """The first of each target's seeds is well-formed, so that mutations of it pass the first check."""
    target = TARGETS[name]
    assert target.read(target.seeds[0])


@pytest.mark.parametrize(("name", "data"), [(name, seed) for name, target in TARGETS.items() for seed in target.seeds])
def test_every_seed_is_read_or_refused(name: str, data: bytes) -> None:
    """The seeds include all inputs that fuzzing has found."""
    TARGETS[name].read(data)
