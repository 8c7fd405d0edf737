"""How long an unanswered TCP connect lasts, by the timers of this kernel.

The kernel repeats the SYN whenever a timer runs out. After the first timer, as many as
`net.ipv4.tcp_syn_linear_timeouts` (Linux 6.5) have the same duration, and each later one has twice that of the one
before. A connect with TCP_SYNCNT n ends at the first timer after 2^(n+1) - 1 durations of the first one: this is when n
repetitions end if each timer doubles (net/ipv4/tcp_timer.c).
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Final

MOST_REPEATS: Final = 8
"""The largest TCP_SYNCNT that a limit needs: with it, a connect of two minutes repeats its SYN within a second."""
_SHORTENED: Final = 32  # the kernel rounds timers up, by an eighth at most, so they are set a 32nd shorter
_LINEAR_TIMEOUTS: Final = Path("/proc/sys/net/ipv4/tcp_syn_linear_timeouts")
_CLOSE: Final = 0.86  # timers are late by up to an eighth, so one from here on may come late enough to be the last
_ALIKE: Final = 0.94  # and then it does not matter, if it is as late as this part of the last


def linear_timeouts() -> int:
    """Return how many timers of a SYN are as long as the first one; 0 before Linux 6.5."""
    try:
        return int(_LINEAR_TIMEOUTS.read_text())
    except (OSError, ValueError):
        return 0


def lasts(linear: int) -> tuple[int, ...]:
    """Return how long connects with TCP_SYNCNT 1, 2 and so on last, in durations of the first timer.

    It is 0 if that is not certain: if the timer before the last one ends the connect in case it is late.

    :param linear: as `linear_timeouts` returns it.
    """
    return tuple(_end(linear, 2 ** (repeats + 1) - 1) for repeats in range(1, MOST_REPEATS + 1))


def longest(tick_ns: int) -> int:
    """Return the longest first timer that a limit may need, in ticks: a second, which is the kernel's own (RFC 6298).

    :param tick_ns: the length of a tick, in nanoseconds.
    """
    return _shortened(1_000_000_000) // (_SHORTENED * tick_ns)


def paces(linear: int, tick_ns: int) -> tuple[int, ...]:
    """Return the first timer with TCP_SYNCNT 1, 2 and so on, in 2^-32 ticks for each millisecond of a limit.

    It is 0 where `lasts` is.

    :param linear: as `linear_timeouts` returns it.
    :param tick_ns: the length of a tick, in nanoseconds; at least a millisecond.
    """
    numerator = _shortened(1_000_000) << 32
    return tuple(one and numerator // (_SHORTENED * one * tick_ns) for one in lasts(linear))


def _shortened(duration: int) -> int:
    """Return a timer that the kernel makes as long as this one on average, in parts of _SHORTENED: it rounds up."""
    return duration * (_SHORTENED - 1)


def _end(linear: int, least: int) -> int:
    timers = [*range(linear + 2)]  # from 0, when the SYN is sent
    while timers[-1] < least:
        timers.append(linear - 1 + 2 * (timers[-1] - linear + 1))
    *before, end = [*takewhile(lambda timer: timer < least, timers), next(one for one in timers if one >= least)]
    return 0 if _CLOSE * least < before[-1] < _ALIKE * end else end
