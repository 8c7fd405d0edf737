"""The real servers of all virtual servers, as tables whose columns have the same widths.

Of many virtual servers only those of services with problems have tables, the others have a line each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from clb_discovery.documents.names import endpoint, identity, titles
from clb_discovery.documents.rates import Key, Rate, connects_per_second, key_of
from clb_discovery.terminal.bar import ASCII, UNICODE, Glyphs, bar
from clb_discovery.terminal.overview import Overview
from clb_discovery.terminal.parts import part_lines
from clb_discovery.terminal.screen import plain
from clb_discovery.terminal.zones import cell, zone_lines

_INDENT: Final = 2
_NARROWEST: Final = 12
"""Least characters of the column of addresses. If the screen is too narrow even for that, whole lines are folded."""
_MOST_TABLES: Final = 20
_MOST_ROWS: Final = 50
_MOST_ROWS_OF_ALL: Final = 300
"""At most so many tables are shown, so many real servers of one, and so many of all together. `--json` has all."""
_STYLES: Final = {"active": "green", "suspect": "yellow", "probing": "yellow", "ejected": "red"}
_TEXTS: Final = frozenset({"address", "zone", "state", "bar", "causes"})  # columns that are aligned to the left


class Layout(NamedTuple):
    """One way to use the width of the screen."""

    heads: dict[str, str]
    """The columns in their order, and their headings."""
    gap: int
    """Spaces between columns."""
    join: str
    """The text between a counter and its rate."""
    stacked: bool = False
    """Whether causes of failures are below their number, one a line."""
    folds: bool = False
    """Whether long addresses and zones are folded if there is no room."""


_ROOMY: Final = {
    "address": "real server", "priority": "priority", "weight": "weight", "state": "state", "connects": "connects",
    "bar": "", "share": "share", "target": "target", "active": "active", "failures": "failures",
}  # fmt: skip
_PLAIN: Final = {name: head for name, head in _ROOMY.items() if name != "bar"}
_NARROW: Final = _PLAIN | {"priority": "prio", "failures": "failed"}
_LAYOUTS: Final = (Layout(_ROOMY, 2, " "), Layout(_PLAIN, 2, " "), Layout(_NARROW, 1, "\n", folds=True))
"""The widest first."""
_EXTRA: Final = {"part": "part", "zone": "zone"}
"""Columns behind the addresses that there are only if a pool has parts, or follows zones."""
_SHORTEST: Final = {"part": "pt", "weight": "wgt", "connects": "conns", "active": "open"}
"""Headings in the narrowest layout with both."""
_FOLDED: Final = {"zone": 5, "address": _NARROWEST}
"""Columns that are folded, each with its least width, the first to be folded first."""

_Row = Mapping[str, str]


class Pools:
    """All virtual servers, those of the worst services first."""

    def __init__(self, status: Mapping[str, Any], rates: Mapping[Key, Rate] | None, worst: Sequence[str] = ()) -> None:
        """Take the document of `status --json`, rates if they are shown, too, and the subjects of problems."""
        ranks = {subject: rank for rank, subject in enumerate(dict.fromkeys(worst))}
        places = {  # those of one service are shown together
            service: (ranks.get(title, len(ranks)), place)
            for place, (service, title) in enumerate(titles(status).items())
        }
        in_order = sorted(status["virtual_servers"], key=lambda server: places[identity(server)])
        tables = [one for one in in_order if len(in_order) <= _MOST_TABLES or places[identity(one)][0] < len(ranks)]
        self._tables = tables[:_MOST_TABLES]
        self._others = Overview([*tables[_MOST_TABLES:], *in_order[len(tables) :]], rates)
        self._rates = rates
        self._most = min(_MOST_ROWS, _MOST_ROWS_OF_ALL // max(1, len(self._tables)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        glyphs = (ASCII if options.ascii_only else UNICODE) if console.is_terminal else None
        layout, pools, widths = self._fit(options.max_width - _INDENT, glyphs)
        for server, pool in zip(self._tables, pools, strict=True):
            yield ""
            yield self._title(server)
            lines = (*part_lines(server), *zone_lines(server))
            yield from (plain(f"{' ' * _INDENT}{line}", "dim") for line in lines)
            if pool:
                yield from _lines(layout.heads, layout.gap, widths, head=True)
                for row in pool:
                    yield from _lines(row, layout.gap, widths)
                left = len(server["real_servers"]) - len(pool)
                if left:
                    yield plain(f"{' ' * _INDENT}and {left:,} more; status --json has all of them", "dim")
            else:
                yield plain(f"{' ' * _INDENT}no real servers: connects are refused", "red")
        yield self._others

    def _fit(self, room: int, glyphs: Glyphs | None) -> tuple[Layout, list[list[_Row]], Mapping[str, int]]:
        """Return the widest layout that fits into lines of this length, its rows by pool, and its columns' widths."""
        for layout in self._layouts(with_bars=bool(glyphs)):
            pools = [self._rows(server, layout, glyphs or ASCII) for server in self._tables]
            rows = [layout.heads, *(row for pool in pools for row in pool)]
            widths = {name: max(len(line) for row in rows for line in row[name].split("\n")) for name in layout.heads}
            excess = sum(widths.values()) + layout.gap * (len(widths) - 1) - room
            if excess <= 0:
                return layout, pools, widths
        for name, least in _FOLDED.items():
            if name in widths and excess > 0:
                narrower = max(min(widths[name], least), widths[name] - excess)
                excess -= widths[name] - narrower
                widths[name] = narrower
        return layout, pools, widths

    def _layouts(self, *, with_bars: bool) -> Iterator[Layout]:
        """Yield the ways to use the width, the widest first; causes only if connects have failed, and there is room."""
        extra = {name: head for name, head in _EXTRA.items() if any(f"{name}s" in one for one in self._tables)}
        failed = any(any(real["causes"].values()) for server in self._tables for real in server["real_servers"])
        for one in _LAYOUTS if with_bars else _LAYOUTS[1:]:
            heads = {"address": one.heads["address"], **extra, **one.heads}
            layout = one._replace(heads=heads | _SHORTEST if one.folds and len(extra) > 1 else heads)
            if failed:
                yield layout._replace(heads=layout.heads | {"causes": "causes"})
                yield layout._replace(stacked=True)
            yield layout

    def _rows(self, server: Mapping[str, Any], layout: Layout, glyphs: Glyphs) -> list[_Row]:
        rows: list[_Row] = []
        join = layout.join
        for real in _some_of(server["real_servers"], self._most):
            target = real["target_share"]
            share = real["connects"] / server["connects"] if server["connects"] else None
            rate = self._rates.get(key_of(server, real)) if self._rates is not None else None
            causes = _causes(real["causes"])
            rows.append(
                {
                    "address": endpoint(real),
                    "part": str(real.get("part", "-")),
                    "zone": cell(real),
                    "priority": str(real["priority"]),
                    "weight": str(real["weight"]),
                    "state": next((name for name in ("suspect", "probing") if real[name]), real["state"]),
                    "connects": f"{real['connects']:,}" + (f"{join}{rate.connects:,.1f}/s" if rate else ""),
                    "bar": bar(share or 0.0, target, glyphs),
                    "share": f"{share:.1%}" if share is not None else "-",
                    "target": f"{target:.1%}",
                    "active": f"{real['active']:,}",
                    "failures": f"{real['failures']:,}"
                    + (f"{join}{rate.failures:,.1f}/s" if rate else "")
                    + "".join(f"\n{cause}" for cause in causes if layout.stacked),
                    "causes": ", ".join(causes),
                }
            )
        return rows

    def _title(self, server: Mapping[str, Any]) -> Text:
        counts = f"{server['connects']:,} connects"
        if self._rates is not None:
            counts += f" ({connects_per_second(self._rates, server):,.1f}/s)"
        counts += f", {server['refused']:,} refused" if server["refused"] else ""
        return Text("  ", overflow="fold").join(
            [
                plain(server["service"] or "unnamed", "bold"),
                plain(f"{endpoint(server)}/{server['protocol']}", "cyan"),
                plain(server["algorithm"] or "unknown scheduler"),
                *([plain(server["check"], "dim")] if server["check"] else []),
                plain(counts),
                plain(_origin(server), "dim"),
            ]
        )


def _origin(server: Mapping[str, Any]) -> str:
    """Return where a pool comes from; several parts have lines of their own."""
    if "parts" in server:
        return f"from {len(server['parts'])} parts"
    return f"from {server['source']}" if server["source"] else "from an unknown source"


def _some_of(reals: Sequence[Mapping[str, Any]], most: int) -> Sequence[Mapping[str, Any]]:
    """Return at most so many real servers in their order. Ejected ones are kept before all others."""
    if len(reals) <= most:
        return reals
    by_state = sorted(range(len(reals)), key=lambda at: reals[at]["state"] == "active")
    return [reals[at] for at in sorted(by_state[:most])]


def _causes(counts: Mapping[str, int]) -> list[str]:
    return [f"{count:,} {cause.replace('_', '-')}" for cause, count in counts.items() if count]


def _lines(row: _Row, gap: int, widths: Mapping[str, int], *, head: bool = False) -> Iterator[Text]:
    """Yield the lines of a row, each cell folded by itself. A rich.Table does the same in several times the time."""
    cells = {name: _folded(row[name], width) for name, width in widths.items()}
    for number in range(max(map(len, cells.values()))):
        line = Text(" " * _INDENT, overflow="fold")
        for name, width in widths.items():
            text = cells[name][number] if number < len(cells[name]) else ""
            text = text.ljust(width) if name in _TEXTS else text.rjust(width)
            line.append(text, "dim" if head else _style(name, row)).append(" " * gap)
        line.rstrip()
        yield line


def _folded(cell: str, width: int) -> list[str]:
    return [line[start : start + width] for line in cell.split("\n") for start in range(0, len(line) or 1, width or 1)]


def _style(name: str, row: _Row) -> str:
    if name == "causes":
        return "yellow"
    if name == "failures":
        return "" if row[name].startswith("0") else "yellow"
    return _STYLES.get(row[name], "") if name == "state" else "dim" if name in {"priority", "target"} else ""
