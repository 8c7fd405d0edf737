"""The problems, a line or some for each: `status --problems`, and the first part of `--watch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from clb_discovery.documents.names import titles
from clb_discovery.documents.verdict import Problem, problems
from clb_discovery.terminal.screen import padded, plain
from clb_discovery.terminal.status import ok_line, wrong_line
from clb_discovery.text import printable

_WIDEST: Final = 24
"""The column of subjects is at most so many cells wide; a longer subject pushes its own text to the right."""
_NARROWEST: Final = 20
"""Least cells of the column of texts. If the screen is too narrow even for that, lines are folded anywhere."""
_MOST: Final = 200
"""At most so many problems are listed; `--json` has all of them."""
_GAP: Final = "  "
_CUT: Final = "..."


class Problems:
    """The problems alone. If their texts do not fit on the screen, each is cut to one line."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        """Take the document of `status --json`."""
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        found = list(problems(self._status))
        room = (options.height or console.height) - 2  # for the last line, and the prompt of the shell
        lines = console.render_lines(ProblemLines(found, cut=False), options, pad=False)
        is_cut = console.is_terminal and len(lines) > room
        yield ProblemLines(found, cut=is_cut)
        last = summary(self._status, found)
        yield last + plain("; --service NAME has the whole texts", "red") if is_cut else last


class ProblemLines:
    """The problems, those of one subject together, the worst first."""

    def __init__(self, found: Sequence[Problem], *, cut: bool) -> None:
        """Take the problems, the worst first.

        :param cut: cut texts that do not fit on a line; else they have further lines.
        """
        self._found = found
        self._cut = cut

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        places: dict[str, int] = {}
        for problem in self._found:
            places.setdefault(problem.subject, len(places))
        shown = sorted(self._found, key=lambda problem: places[problem.subject])[:_MOST]
        column = min(_WIDEST, max((cell_len(printable(problem.subject)) for problem in shown), default=0))
        for problem in shown:
            subject = padded(printable(problem.subject), column) + _GAP
            yield from self._lines(subject, plain(problem.text, "red"), console, options.max_width)
        if len(shown) < len(self._found):
            yield plain(f"and {len(self._found) - len(shown):,} more; status --json has all of them", "dim")

    def _lines(self, subject: str, text: Text, console: Console, width: int) -> Iterator[Text]:
        indent, start = cell_len(subject), Text(subject, style="bold", overflow="fold")
        room = width - indent
        if room < _NARROWEST:
            yield start + text
        elif self._cut:
            yield start + _shortened(text, room)
        else:
            for number, line in enumerate(text.wrap(console, room)):
                line.rstrip()
                yield start + line if number == 0 else Text(" " * indent) + line


def summary(status: Mapping[str, Any], found: Sequence[Problem]) -> Text:
    """Return a last line with the number of problems, or that there are none."""
    if not found:
        return ok_line(status)
    services = set(titles(status).values())
    concerned = services & {problem.subject for problem in found}
    where = f", in {len(concerned):,} of {len(services):,} services" if concerned else ""
    return wrong_line(f"{len(found):,} problem{'' if len(found) == 1 else 's'}{where}")


def _shortened(text: Text, room: int) -> Text:
    """Return the text, cut if it is longer than so many cells."""
    if text.cell_len <= room:
        return text
    return Text(set_cell_size(text.plain, room - len(_CUT)) + _CUT, style=text.style)
