"""Output to a terminal, in its width and colours, or to another stream, in plain lines of any length."""

from __future__ import annotations

import io
import os
import sys
from functools import partial
from typing import Final, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from clb_discovery.text import printable

_ENDLESS: Final = 1_000_000  # cells of a line that is never folded
_console: Final = partial(Console, force_jupyter=False, markup=False, emoji=False, highlight=False)


def is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that has colours and can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def terminal(stream: TextIO) -> Console:
    """Return the terminal; rich follows its size, COLUMNS and LINES, and NO_COLOR."""
    return _console(file=_tolerant(stream), force_terminal=True)


def show(renderable: RenderableType, stream: TextIO | None = None) -> None:
    """Print something.

    :param stream: stdout by default. A stream that is no terminal gets lines without control codes, so that grep works
        on them. They are folded only if COLUMNS is set.
    """
    stream = stream or sys.stdout
    if is_terminal(stream):
        terminal(stream).print(renderable)
        return
    columns = os.environ.get("COLUMNS", "")
    text = as_text(renderable, int(columns) if columns.isdecimal() and int(columns) else _ENDLESS)
    print(text, end="", file=_tolerant(stream), flush=True)


def as_text(renderable: RenderableType, width: int) -> str:
    """Return plain lines, without spaces at their ends."""
    output = io.StringIO()
    _console(file=output, force_terminal=False, width=width, color_system=None).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


def plain(text: str, style: str = "") -> Text:
    """Return untrusted text in a form that is safe to show: control codes are escaped, and long lines are folded."""
    return Text(printable(text), style=style, overflow="fold")


def padded(text: str, cells: int) -> str:
    """Return text padded with spaces to a width on the screen. Some characters take two cells there, and some none."""
    return text + " " * (cells - cell_len(text))


def _tolerant(stream: TextIO) -> TextIO:
    """Let a stream escape characters that its encoding lacks, such as those of names if the locale is C."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
