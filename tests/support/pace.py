"""How long tests wait and how much they do: more patience and less effort on an emulated machine.

`CLB_TEST_PATIENCE=10` makes every wait up to ten times as long, `CLB_TEST_EFFORT=0.1` every large amount a tenth.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

PATIENCE: Final = float(os.environ.get("CLB_TEST_PATIENCE", "1"))
EFFORT: Final = float(os.environ.get("CLB_TEST_EFFORT", "1"))
STRIDE: Final = max(1, round(1 / EFFORT))
"""Of a series of equal trials every n-th is made."""


def patient(seconds: float) -> float:
    """Return how long to wait for something that takes an ordinary machine at most these seconds."""
    return seconds * PATIENCE


def effort(amount: int, least: int) -> int:
    """Return how many times to do something that an ordinary machine does `amount` times, but not less than `least`."""
    return max(least, round(amount * EFFORT))


def hurry() -> None:
    """Let this thread run before all others: on a busy machine, links and servers of a test take no longer.

    Threads of one process wait for each other in Python, so all that run meanwhile have to hurry.
    """
    with suppress(PermissionError):  # for root in a container, or with real-time groups
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
