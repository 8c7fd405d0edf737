"""The most that a connection of ours may cost, in instructions more than a direct one at the client's end.

Instructions do not depend on the machine, so `make bench-vm` fails if a goal is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from benchmarks.client import FIN, RST
from benchmarks.planes import LEAN, LEAN_ELSEWHERE, LEAST_CONN, SHIPPED, SHIPPED_ELSEWHERE

CONNECT: Final = "connect"
MEASURES: Final[dict[str, str]] = {
    CONNECT: "connect(2)",
    RST: "open and close by RST",
    FIN: "open and close by FIN",
}
"""What is counted, with its names for people: the call alone, and whole connections by the way of their close."""


class Goal(NamedTuple):
    """A goal, and the cost when it was set."""

    most: int
    layout_1: int
    """Measured with layout 1 of the maps, by what `MEASURED_WITH` names."""


GOALS: Final[Mapping[str, Mapping[str, Goal]]] = {
    LEAN: {CONNECT: Goal(900, 2_197), RST: Goal(1_250, 2_551), FIN: Goal(1_050, 2_681)},
    SHIPPED: {CONNECT: Goal(2_150, 2_651), RST: Goal(2_450, 3_244), FIN: Goal(2_600, 3_678)},
    LEAST_CONN: {CONNECT: Goal(2_450, 3_433), RST: Goal(2_900, 4_025), FIN: Goal(3_200, 4_456)},
    LEAN_ELSEWHERE: {CONNECT: Goal(270, 1_610), RST: Goal(500, 1_882)},
    SHIPPED_ELSEWHERE: {CONNECT: Goal(1_450, 1_612), RST: Goal(1_650, 1_886)},
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
            if cost > goal.most:
                yield (
                    f"{row}: {MEASURES[what]} takes {cost:+,.0f}, {cost - goal.most:,.0f} more than the goal of "
                    f"{goal.most:+,} (layout 1: {goal.layout_1:+,})"
                )
