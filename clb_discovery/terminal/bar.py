"""A bar for a share."""

from __future__ import annotations

from typing import Final, NamedTuple

WIDTH: Final = 20
"""Cells of a bar of 100 %."""


class Glyphs(NamedTuple):
    """The characters of a bar."""

    parts: str
    """Parts of a cell, from the smallest to the whole one."""
    mark: str


UNICODE: Final = Glyphs("▏▎▍▌▋▊▉█", "┃")
ASCII: Final = Glyphs("#", "|")


def bar(measured: float, expected: float, glyphs: Glyphs = ASCII) -> str:
    """Draw one bar with the mark of what was expected; nothing marks an expectation of nothing."""
    steps = len(glyphs.parts)
    whole, rest = divmod(round(measured * WIDTH * steps), steps)
    cells = glyphs.parts[-1] * whole + (glyphs.parts[rest - 1] if rest else "")
    if expected == 0:
        return cells
    end = round(expected * WIDTH)
    return f"{cells[:end]:<{end}}{glyphs.mark}{cells[end + 1 :]}"
