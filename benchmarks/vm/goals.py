"""The most that a connection of ours may cost, in instructions more than a direct one at the client's end.

Instructions do not depend on the machine, so `make bench-vm` fails if a goal is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from benchmarks.client import FIN, RST
from benchmarks.planes import LEAN, LEAN_ELSEWHERE, LEAST_CONN, LEAST_CONN_BUSY, SHIPPED, SHIPPED_ELSEWHERE

CONNECT: Final = "connect"
MEASURES: Final[dict[str, str]] = {
    CONNECT: "connect(2)",
    RST: "open and close by RST",
    FIN: "open and close by FIN",
}
"""What is counted, with its names for people: the call alone, and whole connections by the way of their close."""


GOALS: Final[Mapping[str, Mapping[str, int]]] = {
    LEAN: {CONNECT: 900, RST: 1_250, FIN: 1_050},
    SHIPPED: {CONNECT: 2_150, RST: 2_450, FIN: 2_600},
    LEAST_CONN: {CONNECT: 2_450, RST: 2_900, FIN: 3_200},
    LEAST_CONN_BUSY: {},
    LEAN_ELSEWHERE: {CONNECT: 270, RST: 500},
    SHIPPED_ELSEWHERE: {CONNECT: 1_450, RST: 1_650},
}
MEASURED_WITH: Final = ("6.1.176-1", "Debian clang version 14.0.6")
"""The version of the kernel's package, and of the compiler. Others may take other numbers of instructions."""


def missed(costs: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield each goal that is missed, and by how much.

    :param costs: in the form of `GOALS`.
    """
    for row, goals in GOALS.items():
        for what, goal in goals.items():
            cost = costs[row][what]
            if cost > goal:
                yield f"{row}: {MEASURES[what]} takes {cost:+,.0f}, {cost - goal:,.0f} more than the goal of {goal:+,}"
