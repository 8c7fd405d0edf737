"""Where tables go: a terminal in its width and colours, or anything else as plain lines, as long as they are."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from clb_discovery.text import printable

_ENDLESS: Final = 1_000_000
"""Cells of a line that nobody folds."""


def is_terminal(stream: TextIO) -> bool:
    """Tell whether there is a screen that can be coloured and redrawn."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def terminal(stream: TextIO) -> Console:
    """Return the terminal; rich follows its size, COLUMNS and LINES, and NO_COLOR."""
    return _console(_tolerant(stream), force_terminal=True)


def show(renderable: RenderableType, stream: TextIO | None = None) -> None:
    """Print something.

    :param stream: stdout by default. What is no terminal gets lines without control codes, folded at COLUMNS if that is
        set, and else not at all, so that each can be found by grep.
    """
    stream = stream or sys.stdout
    if is_terminal(stream):
        terminal(stream).print(renderable)
        return
    columns = os.environ.get("COLUMNS", "")
    text = as_text(renderable, int(columns) if columns.isdecimal() and int(columns) else _ENDLESS)
    print(text, end="", file=_tolerant(stream), flush=True)


def as_text(renderable: RenderableType, width: int) -> str:
    """Return plain lines, without blanks at their ends."""
    output = io.StringIO()
    _console(output, force_terminal=False, width=width, color_system=None).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


def plain(text: str, style: str = "") -> Text:
    """Return untrusted text as it may be shown: nothing in it is obeyed, and a line that is too long is folded."""
    return Text(printable(text), style=style, overflow="fold")


def padded(text: str, cells: int) -> str:
    """Return text with blanks behind it up to a width on the screen, where some signs take two cells and some none."""
    return text + " " * (cells - cell_len(text))


def endpoint(found: Mapping[str, Any]) -> str:
    """Return address and port of a virtual or real server of a document; a port of 0 is every port."""
    address = f"[{found['address']}]" if ":" in found["address"] else found["address"]
    return f"{address}:{found['port'] or '*'}"


def _tolerant(stream: TextIO) -> TextIO:
    """Let a stream escape what its encoding lacks, such as names where the locale is C."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _console(
    stream: TextIO,
    *,
    force_terminal: bool,
    width: int | None = None,
    color_system: Literal["auto"] | None = "auto",
) -> Console:
    return Console(
        file=stream,
        force_terminal=force_terminal,
        force_jupyter=False,
        width=width,
        color_system=color_system,
        markup=False,
        emoji=False,
        highlight=False,
    )
