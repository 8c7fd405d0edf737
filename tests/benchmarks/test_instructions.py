"""How `make bench-vm` finds out where the instructions of a connection go, without a machine."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks.client import CLOSES, FIN, RST
from benchmarks.planes import AGAIN, DIRECT, LEAN, LEAN_ELSEWHERE, SHIPPED
from benchmarks.programs import ON_THE_WAY
from benchmarks.tables import of_instructions
from benchmarks.vm.goals import CONNECT, GOALS
from benchmarks.vm.instructions import (
    Hook,
    costs_and_goals,
    direct,
    document,
    hook,
    lines,
    more,
    read_sample,
    rows,
    shortcomings,
)


def of_closes(connect: float, whole: float, **runs: tuple[float, float]) -> dict[str, Any]:
    """Return results of a machine in nanoseconds; a close by FIN takes 40,000 ns more than a reset."""
    by_program = {f"clb_{name}": counted for name, counted in runs.items()}
    return {
        RST: {"times": [connect, whole], "runs": by_program},
        FIN: {"times": [connect, whole + 40_000], "runs": by_program},
    }


FOUND = {
    "empty": {
        "clb_connect4": of_closes(80_400, 140_400, connect4=(1, 60)),
        "clb_sock_ops": of_closes(82_000, 142_000, sock_ops=(5, 300)),
        "clb_sock_release": of_closes(80_000, 140_100, sock_release=(1, 60)),
    },
    "rows": {
        DIRECT: of_closes(80_000, 140_000),
        **{row: of_closes(81_000, 141_000) for row in GOALS},
        SHIPPED: of_closes(84_000, 146_000, connect4=(1, 1_660), sock_ops=(10, 1_000), sock_release=(1, 260)),
        LEAN: of_closes(82_000, 142_000, connect4=(1, 1_060)),
        AGAIN: of_closes(80_002, 140_002),
    },
    "before": {name: of_closes(80_000, 140_000) for name in (*ON_THE_WAY, *GOALS, AGAIN)},
}
SAMPLE = read_sample(json.dumps(FOUND).encode())


def test_connections_are_compared_with_direct_ones() -> None:
    """Two nanoseconds are one instruction. The call is that of connections that are reset."""
    assert more(SAMPLE, SHIPPED) == {CONNECT: 2_000, RST: 3_000, FIN: 3_000}
    assert direct([SAMPLE]) == {CONNECT: 40_000, RST: 70_000, FIN: 90_000}


@pytest.mark.parametrize("part", ["empty", "rows", "before"])
@pytest.mark.parametrize("close", [None, *CLOSES])
def test_an_incomplete_sample_is_an_error(part: str, close: str | None) -> None:
    """Anything may be missing."""
    found = copy.deepcopy(FOUND)
    name = list(found[part])[-1]
    if close:
        del found[part][name][close]
    else:
        del found[part][name]
    with pytest.raises(ValueError, match="not complete"):
        read_sample(json.dumps(found).encode())


def test_a_hook_costs_its_program_and_its_calls() -> None:
    """The reading of the clock is not in the program. A call costs what it costs with an empty program."""
    assert hook(SAMPLE, SHIPPED, RST, "clb_connect4") == Hook(1, 800, 200)
    assert hook(SAMPLE, SHIPPED, FIN, "clb_sock_ops") == Hook(10, 200, 2_000)


def test_a_detached_program_costs_nothing() -> None:
    """A data plane may have no program at a hook."""
    assert hook(SAMPLE, LEAN, RST, "clb_sock_ops") == Hook(0, 0, 0)


def test_everything_has_its_place() -> None:
    """What is in no program and in no call is the rest."""
    row = rows([SAMPLE])[SHIPPED]
    assert sum(cost.inside + cost.outside for cost in row.hooks[RST].values()) + row.rest(RST) == row.more[RST]
    assert row.rest(RST) == 3_000 - (800 + 200) - (200 + 2_000) - (100 + 50)


def test_differing_machines_are_reported() -> None:
    """Costs are medians; machines may differ by 200 instructions from direct to ours, whatever direct takes."""
    near, far = (copy.deepcopy(FOUND) for _ in range(2))
    near["before"] = {name: of_closes(90_000, 150_000) for name in FOUND["before"]}
    near["rows"][AGAIN] = of_closes(90_000, 150_000)
    near["rows"] |= {row: of_closes(91_200, 151_200) for row in GOALS}
    far["rows"][SHIPPED] = of_closes(84_000, 146_402)
    samples = [read_sample(json.dumps(found).encode()) for found in (FOUND, far, FOUND)]
    found = rows(samples)
    assert found[SHIPPED].more[RST] == 3_000
    assert list(shortcomings(found)) == ["as shipped: machines differ by 201 instructions"]
    calm = rows([SAMPLE, read_sample(json.dumps(near).encode())])[LEAN_ELSEWHERE]
    assert calm.spread == 100


def test_leftovers_are_reported() -> None:
    """Direct connections at the end have to take what they took at the beginning."""
    found = copy.deepcopy(FOUND)
    found["rows"][AGAIN] = of_closes(80_000, 140_500)
    said = list(shortcomings(rows([read_sample(json.dumps(found).encode())])))
    assert said == [
        "direct again: open and close by RST takes +250, so something is left of what was measured before",
        "direct again: open and close by FIN takes +250, so something is left of what was measured before",
    ]


def test_tables_have_all_rows_and_goals() -> None:
    """The tables for people and those of the document have the same cells; columns have the same width."""
    found = document(rows([SAMPLE]), direct([SAMPLE]))
    assert [cells[0] for cells in costs_and_goals(found["rows"])] == [*GOALS, AGAIN]
    shown = list(lines(found["rows"]))
    assert next(line for line in shown if line.startswith(SHIPPED)).split()[2:] == [
        *("+2,000", "+2,150", "+3,000", "+2,450", "+3,000", "+2,600", "0"),
    ]
    assert len({len(line) for line in shown[: len(GOALS) + 2]}) == 1
    text = list(of_instructions({"kernel": "6.1.1-1", "compiler": "clang 14", "repeats": 3, **found}))
    assert text[0] == "Debian's 6.1.1-1, programs by clang 14; 3 machines; in instructions:"
    assert "| elsewhere, lean | +500 | +270 | +500 | +500 | +500 | | 0 |" in text
    assert "| as shipped, FIN | 1 | 800 | 200 | 10 | 200 | 2,000 | 1 | 100 | 50 | -350 | +3,000 |" in text
    assert len([line for line in text if line.startswith("| lean, ")]) == 2
    assert len(ON_THE_WAY) == 3
