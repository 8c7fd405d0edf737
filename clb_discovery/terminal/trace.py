"""`trace` for people: one line for each connect, under a header, in the width of the terminal.

On 80 columns there is room for the time, the origin, the service, the real server and the outcome. A wider terminal has
more columns, and wider ones; a pipe has all, and no cell is shortened there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from rich.cells import cell_len, set_cell_size

from clb_discovery.documents.trace import DROPPED
from clb_discovery.terminal.screen import padded
from clb_discovery.text import printable

_NARROW: Final = {"time": 8, "from": 13, "service": 8, "real server": 21, "outcome": 26}
"""The columns of a terminal with 80 columns or fewer, with their widths."""
_WIDER: Final = (
    ("command", 15), ("virtual server", 25), ("pid", 7), ("service", 16), ("from", 22), ("time", 12),
    ("outcome", 52), ("real server", 47), ("virtual server", 51), ("service", 32), ("from", 40),
)  # fmt: skip
"""Columns that are added or widened, in this order, each if there is room."""
_PIPE: Final = {
    "time": 12, "pid": 7, "command": 15, "from": 20, "service": 12, "virtual server": 21, "real server": 21,
    "outcome": 0,
}  # fmt: skip
"""The columns of a pipe. The next column moves to the right after a wider cell."""
_ID: Final = 12
"""Characters of a container's id that container engines show, too."""


def header(width: int | None) -> str:
    """Return the names of the columns.

    :param width: columns of the terminal; None for a pipe.
    """
    return _joined({name: name.upper() for name in _PIPE}, _layout(width))


def row(document: Mapping[str, Any], width: int | None) -> str:
    """Return the line for an object of `trace --json`; the parameter is that of `header`."""
    clock = datetime.fromisoformat(document["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    if document["outcome"] == DROPPED:
        return f"{clock}  connects are missing here: they came faster than they were read"
    widths = _layout(width)
    command = printable(document["command"] or "?")
    unnamed = printable(document["cgroup"] or "?") if "command" in widths else command
    cells = {
        "time": clock,
        "pid": f"{document['pid'] or '?':>7}",
        "command": command,
        "from": _origin(document, None if width is None else widths["from"]) or unnamed,
        "service": printable(document["service"] or "?"),
        "virtual server": document["virtual_server"],
        "real server": document["real_server"] or "none",
    }
    if width is not None:
        cells = {name: _SHORTEN.get(name, _cut)(cell, widths.get(name, 0)) for name, cell in cells.items()}
    return _joined({**cells, "outcome": _outcome(document, widths["outcome"])}, widths)


@lru_cache
def _layout(width: int | None) -> Mapping[str, int]:
    """Return the columns from left to right, with their widths."""
    if width is None:
        return _PIPE
    widths = dict(_NARROW)
    for name, wider in _WIDER:
        if _total(widths | {name: wider}) <= width:
            widths[name] = wider
    return {name: widths[name] for name in _PIPE if name in widths}


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + len(widths) - 1


def _joined(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return " ".join(padded(cells[name], size) for name, size in widths.items()).rstrip()


def _origin(document: Mapping[str, Any], size: int | None) -> str | None:
    """Return the container, without its engine if there is no room for both, or else the unit."""
    if document["container"] is None:
        return printable(document["unit"] or "") or None
    engine, _, number = document["container"].partition(":")
    shown = f"{engine}:{number[:_ID]}"
    return shown if size is None or len(shown) <= size else number[:_ID]


def _outcome(document: Mapping[str, Any], size: int) -> str:
    """Return the outcome with its cause, or else its errors, and with the time that it took if there is room."""
    text = " ".join(filter(None, (document["outcome"], document["cause"] or "/".join(document["errno"]))))
    latency = document["latency_ms"]
    timed = text if latency is None else f"{text} {_duration(latency)}"
    return timed if not size or len(timed) <= size else _cut(text, size)


def _duration(milliseconds: float) -> str:
    if milliseconds < 100:
        return f"{milliseconds:.2f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f} s"


def _cut(text: str, size: int) -> str:
    return text if cell_len(text) <= size else f"{set_cell_size(text, size - 1).rstrip()}…"


def _short_endpoint(text: str, size: int) -> str:
    """Keep the port, the first group of an IPv6 address, and as many of its last groups as there is room for."""
    address, _, port = text.rpartition("]")
    first, *groups = address.split(":")
    while len(text) > size and groups:
        groups.pop(0)
        text = f"{first}:…:{':'.join(groups)}]{port}"
    return _cut(text, size)


_SHORTEN: Final[Mapping[str, Callable[[str, int], str]]] = {
    "time": lambda clock, size: clock[:size],
    "virtual server": _short_endpoint,
    "real server": _short_endpoint,
}
"""How some cells are shortened; the others are cut at their ends."""
