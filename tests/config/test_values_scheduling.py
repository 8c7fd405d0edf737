"""Values about scheduling are read exactly, or rejected with a message that says how to fix them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.servers import Algorithm
from clb_discovery.model.text_forms import parse_algorithm, parse_count, parse_milliseconds, parse_silent_after

DAY = 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("random", Algorithm.RANDOM),
        ("round-robin", Algorithm.ROUND_ROBIN),
        ("least-conn", Algorithm.LEAST_CONN),
    ],
)
def test_a_scheduler_is_read_by_the_name_that_status_prints(text: str, algorithm: Algorithm) -> None:
    """Options and `status` use the same name."""
    assert parse_algorithm(text) is algorithm
    assert str(algorithm) == text


@pytest.mark.parametrize("text", ["", "Random", "round_robin", "least-conn ", "rr", "0", "least-connections"])
def test_no_other_scheduler_is_read(text: str) -> None:
    """The message names the value and all schedulers."""
    with pytest.raises(ValueError, match="use random, round-robin, least-conn") as refused:
        parse_algorithm(text)
    assert repr(text) in str(refused.value)


@given(st.integers(0, 1_000_000))
def test_a_count_is_read(number: int) -> None:
    """Every number from 0 to a million is accepted."""
    assert parse_count(str(number)) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", "1e3", " 3", "3 ", "0x3", "1_000", "1000001", "9" * 40, "٣", "²"]
)
def test_no_other_count_is_read(text: str) -> None:
    """The message names a value with signs, spaces or other digits, or above a million."""
    with pytest.raises(ValueError, match="is not a number from 0 to 1000000") as refused:
        parse_count(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1ms", 1),
        ("200ms", 200),
        ("0.001", 1),
        ("5", 5_000),
        ("5s", 5_000),
        ("1.5s", 1_500),
        ("0.3s", 300),
        ("2m", 120_000),
        ("24h", DAY),
        ("86400000ms", DAY),
    ],
)
def test_milliseconds_are_read(text: str, milliseconds: int) -> None:
    """A duration may have any unit; without one it is in seconds."""
    assert parse_milliseconds(text) == milliseconds


@given(st.integers(1, DAY))
def test_milliseconds_lose_nothing(milliseconds: int) -> None:
    """Every whole number of milliseconds up to a day is read exactly."""
    assert parse_milliseconds(f"{milliseconds}ms") == milliseconds


@pytest.mark.parametrize("text", ["0", "0s", "0.0001s", "0.4ms", "24.001h", "86400001ms", "99999999999h", "9" * 400])
def test_no_time_outside_of_a_day_is_read(text: str) -> None:
    """The message names a value of zero, or of more than a day."""
    with pytest.raises(ValueError, match="is outside 1ms to 24h") as refused:
        parse_milliseconds(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1d", "1e3", "inf", "nan", ".5s", "1,5s", "٣s"])
def test_what_is_no_duration_is_not_read(text: str) -> None:
    """The message shows valid durations."""
    with pytest.raises(ValueError, match="write 30s, 500ms, 2m or 1h"):
        parse_milliseconds(text)


@given(st.integers(1, DAY))
def test_silence_has_a_time_or_none(milliseconds: int) -> None:
    """A time is read as all others are; `off` is none."""
    assert parse_silent_after(f"{milliseconds}ms") == milliseconds
    assert parse_silent_after("off") == 0


@pytest.mark.parametrize("text", ["0", "25h", "never", "OFF", ""])
def test_silence_that_cannot_be_read_is_explained(text: str) -> None:
    """The message says that it can be off."""
    with pytest.raises(ValueError, match=r"or off$"):
        parse_silent_after(text)
