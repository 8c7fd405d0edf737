"""A screen with a part of a long output, a last line that is always shown, and a line about the keys."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from clb_discovery.terminal.screen import plain
from clb_discovery.terminal.view import View


class Screenful:
    """The lines that a view shows of an output."""

    def __init__(self, parts: Sequence[RenderableType], last: RenderableType, view: View) -> None:
        self._parts = parts
        self._last = last
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [line for part in self._parts for line in console.render_lines(part, options, pad=False)]
        last = console.render_lines(self._last, options, pad=False)
        height = options.height or console.height
        lines = lines[self._view.window(len(lines), height - len(last) - 1)]
        footer = console.render_lines(plain(self._view.footer(), "dim"), options, pad=False)[:1]
        below = [*last, *footer] if height > 1 else last
        room = max(0, height - len(lines) - len(below))
        for number, line in enumerate([*lines, *([[]] * room), *below][-height:]):
            if number:
                yield Segment.line()
            yield from line
