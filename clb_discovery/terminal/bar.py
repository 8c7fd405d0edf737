"""A bar that shows a share."""

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
    """Draw a bar as long as the measured share, 0 to 1, with a mark at the expected share if that is not 0."""
    steps = len(glyphs.parts)
    whole, rest = divmod(round(measured * WIDTH * steps), steps)
    cells = glyphs.parts[-1] * whole + (glyphs.parts[rest - 1] if rest else "")
    if expected == 0:
        return cells
    end = round(expected * WIDTH)
    return f"{cells[:end]:<{end}}{glyphs.mark}{cells[end + 1 :]}"
