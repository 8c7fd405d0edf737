"""The length of a tick of this kernel, in which the programs measure how long a connect has been unanswered."""

from __future__ import annotations

import time
from typing import Final

_MONOTONIC_COARSE: Final = 6  # CLOCK_MONOTONIC_COARSE of linux/time.h, which the kernel moves on with each tick


def tick_ns() -> int:
    """Return the nanoseconds between two ticks: a second by CONFIG_HZ, which the kernel shows nowhere else."""
    return round(time.clock_getres(_MONOTONIC_COARSE) * 1e9)
