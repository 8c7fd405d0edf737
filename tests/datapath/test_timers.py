"""How long an unanswered connect lasts: the arithmetic of the loader and the programs, and the timers of the kernel."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.datapath.loading.timers import MOST_REPEATS, lasts, linear_timeouts, longest, paces

LINEAR: Final = st.integers(0, 255)
LIMIT: Final = st.integers(200, 120_000)
HZ: Final = st.sampled_from([100, 250, 300, 1_000])
"""Each CONFIG_HZ of the kernel."""


def first_timer(limit_ms: int, linear: int, tick_ns: int) -> tuple[int, int]:
    """Return the first timer in ticks, and TCP_SYNCNT, as bpf/limits.h does."""
    timers = [limit_ms * pace >> 32 for pace in paces(linear, tick_ns)]
    fitting = ((first, repeats) for repeats, first in enumerate(timers, 1) if 1 <= first <= longest(tick_ns))
    return next(fitting, (timers[-1], MOST_REPEATS))


def runs_out(now: int, duration: int) -> int:
    """Return the tick at which the kernel's wheel fires a timer: later by up to an eighth (kernel/time/timer.c)."""
    level = next(level for level in count() if duration < 63 << 3 * level)
    return ((now + duration >> 3 * level) + 1) << 3 * level


def end_of(start: int, first: int, repeats: int, linear: int) -> int:
    """Return the tick at which the kernel gives up a connect (tcp_retransmit_timer, tcp_write_timeout)."""
    now, timer, retransmits = start, first, 0
    while True:
        now = runs_out(now, timer)
        late = retransmits > 0 and now - start >= (2 ** (repeats + 1) - 1) * first
        if late or retransmits >= repeats + linear:
            return now
        retransmits += 1
        if retransmits > linear:
            timer *= 2


@given(LIMIT, LINEAR, HZ, st.integers(0, 2**32))
def test_connect_ends_at_its_limit(limit_ms: int, linear: int, hz: int, start: int) -> None:
    """With every setting of the kernel it ends at the limit, up to a tenth and 50 ms sooner or later."""
    tick_ns = round(1e9 / hz)
    first, repeats = first_timer(limit_ms, linear, tick_ns)
    took = (end_of(start, first, repeats, linear) - start) * tick_ns / 1e6
    assert abs(took - limit_ms) <= 0.1 * limit_ms + 50


@given(LIMIT, LINEAR, HZ)
def test_lost_syn_is_repeated_within_a_second(limit_ms: int, linear: int, hz: int) -> None:
    """The first timer is at most that of the kernel, which is one second."""
    assert 1 <= first_timer(limit_ms, linear, round(1e9 / hz))[0] <= hz


def test_known_kernels() -> None:
    """Each timer doubles before Linux 6.5, and after four equal ones since then."""
    assert lasts(0) == (3, 7, 15, 31, 63, 127, 255, 511)
    assert lasts(4) == (3, 7, 19, 35, 67, 131, 259, 515)


def test_uncertain_end_is_not_used() -> None:
    """With 31 equal timers, a late one after 61 durations is as good as the end after 63."""
    assert lasts(30)[2] == 0
    assert lasts(30)[4] == 0


@given(LINEAR, HZ)
def test_paces_fit_into_32_bits(linear: int, hz: int) -> None:
    """There is one for each end that is certain."""
    known = paces(linear, round(1e9 / hz))
    assert [bool(one) for one in known] == [bool(one) for one in lasts(linear)]
    assert max(known) < 2**32


def test_programs_without_a_loader_have_the_values_of_250_ticks_a_second() -> None:
    """The values in bpf/maps.h are those that the loader would compute."""
    text = (Path(__file__).parents[2] / "bpf" / "maps.h").read_text()
    found = dict(re.findall(r"#define (CLB_LONGEST|CLB_PACE_\d) (\d+)", text))
    expected = {"CLB_LONGEST": longest(4_000_000)}
    expected |= {f"CLB_PACE_{repeats}": one for repeats, one in enumerate(paces(0, 4_000_000), 1)}
    assert found == {name: str(one) for name, one in expected.items()}


def test_this_kernel_has_a_number_of_equal_timers() -> None:
    """It is 0 where the kernel has no such setting."""
    assert 0 <= linear_timeouts() <= 255
