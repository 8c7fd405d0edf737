"""The control flow of the compiled programs, as old kernels demand it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.layout.test_structs import OBJECTS
from tests.support.elf import section

SECTIONS: Final = (
    ".text", "cgroup/connect4", "cgroup/connect6", "cgroup/sendmsg4", "cgroup/sendmsg6", "cgroup/recvmsg4",
    "cgroup/recvmsg6", "cgroup/getpeername4", "cgroup/getpeername6", "sockops", "cgroup/sock_release",
)  # fmt: skip
SOURCE: Final = Path(__file__).parents[2] / "bpf" / "clb.bpf.c"

JUMPS: Final = frozenset({0x05, 0x06})
"""The classes of jumps, of 64 and of 32 bits."""
EXIT, CALL, ALWAYS, WIDE = 0x95, 0x85, 0x05, 0x18


def steps(code: bytes, at: int) -> list[tuple[int, bool]]:
    """Return the instructions that can follow one, each with whether a jump leads there."""
    opcode, offset = code[8 * at], int.from_bytes(code[8 * at + 2 : 8 * at + 4], "little", signed=True)
    if opcode == EXIT:
        return []
    if opcode & 7 not in JUMPS or opcode == CALL:
        return [(at + 1 + (opcode == WIDE), False)]
    target = at + 1 + offset
    return [(target, True)] if opcode == ALWAYS else [(at + 1, True), (target, True)]


def falls_back(code: bytes) -> Iterator[int]:
    """Yield each instruction that is no jump and leads back to one that led to it.

    This is `check_cfg` of the kernel: functions are consecutive, and no instruction is out of reach.
    """
    seen: set[int] = set()
    for start in range(len(code) // 8):
        if start in seen or (start and code[8 * (start - 1)] == WIDE):
            continue
        seen.add(start)
        path = {start}
        stack = [(start, iter(steps(code, start)))]
        while stack:
            at, following = stack[-1]
            for step, is_jump in following:
                if step in path and not is_jump:
                    yield at
                if step not in seen:
                    seen.add(step)
                    path.add(step)
                    stack.append((step, iter(steps(code, step))))
                    break
            else:
                stack.pop()
                path.discard(at)


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: str(path.name))
@pytest.mark.parametrize("name", SECTIONS)
def test_every_turn_of_a_loop_ends_with_a_jump(path: Path, name: str) -> None:
    """Kernels up to 6.1 refuse a loop whose last instruction before its start is not a jump."""
    assert list(falls_back(section(path.read_bytes(), name))) == []


def test_a_turn_that_ends_without_a_jump_is_found() -> None:
    """A loop whose last instruction falls into its start is one; with a jump at its end it is none."""
    add, leave, back = bytes([7, 1, 0, 0, 1, 0, 0, 0]), bytes([EXIT]) + bytes(7), bytes([5, 0, 0xFD, 0xFF, 0, 0, 0, 0])
    into = bytes([5, 0, 1, 0, 0, 0, 0, 0])  # over the instruction before the start of the loop
    test = bytes([0x15, 1, 1, 0, 4, 0, 0, 0])
    away = bytes([5, 0, 0xFC, 0xFF, 0, 0, 0, 0])
    assert list(falls_back(into + add + add + test + away + leave)) == [1]
    assert list(falls_back(add + test + back[:2] + b"\xfd\xff" + back[4:] + leave)) == []


def test_all_programs_are_looked_at() -> None:
    """A new section of the source must be in the list."""
    assert set(re.findall(r'^CLB_PROGRAM\("(.*)"\)', SOURCE.read_text(), re.MULTILINE)) | {".text"} == set(SECTIONS)
