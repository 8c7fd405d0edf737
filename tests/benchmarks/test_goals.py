"""The goals of `make bench-vm` for the cost of a connection."""

from __future__ import annotations

from benchmarks.client import FIN, RST
from benchmarks.planes import LEAN, SHIPPED_ELSEWHERE, STATES
from benchmarks.vm.goals import GOALS, MEASURES, missed

REACHED = {row: {what: float(goal) for what, goal in goals.items()} | {FIN: 0.0} for row, goals in GOALS.items()}


def test_every_row_has_its_goals() -> None:
    """Everything that is measured in a state of the data plane has its row of goals, and nothing else has one."""
    assert GOALS.keys() == {row for state in STATES for row in (*dict(state.rows), state.busy) if row}
    assert all(goals.keys() <= MEASURES.keys() for goals in GOALS.values())


def test_reached_goals_are_not_reported() -> None:
    """A goal is the most that is allowed."""
    assert list(missed(REACHED)) == []


def test_missed_goals_are_reported_with_how_much() -> None:
    """The report has the cost and the goal; a cost without a goal is free."""
    costs = REACHED | {
        LEAN: REACHED[LEAN] | {RST: 2744.6},
        SHIPPED_ELSEWHERE: REACHED[SHIPPED_ELSEWHERE] | {FIN: 9999.0},
    }
    (said,) = missed(costs)
    assert said == "lean: open and close by RST takes +2,745, 1,495 more than the goal of +1,250"
