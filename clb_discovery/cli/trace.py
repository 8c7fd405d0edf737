"""`trace`: each connect live, from the programs' ring buffer.

Programs write only until the time in `clb_listener`, which a reader keeps moving on. So a reader that was killed costs
nothing after a few seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Final, NoReturn

from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath import cgroup
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.ring import Ring
from clb_discovery.documents.trace import DROPPED, Joiner, Line, Wanted, dropped
from clb_discovery.layout import elements, structs
from clb_discovery.model.own_servers import is_own
from clb_discovery.text import printable

_RENEW: Final = 1.0  # seconds between two renewals of that time
_LISTEN: Final = 3_000_000_000  # nanoseconds for which programs write after a renewal
_WIDTHS: Final = (12, 7, 15, 5, 16, 20, 11, 0)
"""Least widths of the columns time, process, command, service, virtual server, real server, outcome and latency."""


def main(typed: argparse.Namespace) -> NoReturn:
    """Print a line for each connect that the filters select, until interrupted.

    :raises HostError: if nothing is loaded.
    :raises BusyError: if another process reads the ring buffer, which has one reader.
    """
    wanted = Wanted(frozenset(typed.only_service), frozenset(typed.only_command), frozenset(typed.outcome))
    pins = Pins(read_options(typed, os.environ).instance)
    with (
        Maps(pins) as maps,
        Instance(pins.instance).tracing(),
        closing(Ring(maps.events(), structs.EVENTS_BYTES)) as ring,
    ):
        _report_unknown(wanted.services, maps)
        ring.skip()
        joiner, label_of = Joiner(), cache(maps.label)
        form = partial(_as_json, _Cgroups()) if typed.json else _Columns()
        try:
            while True:
                maps.listen_until(time.monotonic_ns() + _LISTEN)
                label_of.cache_clear()  # because they may change
                for line in _lines(ring, joiner, time.monotonic() + _RENEW):
                    label = label_of(line.key) if line.key else None
                    service = label.service if label else None
                    if not (label and is_own(label.source)) and wanted.takes(line, service):
                        print(form(line, service), flush=True)  # noqa: T201 - this is the output
        finally:
            maps.listen_until(0)


def _report_unknown(services: frozenset[str], maps: Maps) -> None:
    """Report services without a virtual server, such as a mistyped name: silence would look like no connects."""
    labels = (published.label for published in maps.read().virtual.values()) if services else ()
    unknown = sorted(services - {label.service for label in labels if label})
    if unknown:
        names = ", ".join(map(repr, unknown))
        line = f"clb-discovery: no virtual server is of service {names} now; waiting for one, see clb-discovery status"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - for people, not for programs that read the lines


def _lines(ring: Ring, joiner: Joiner, until: float) -> Iterator[Line]:
    """Yield the events until a moment of the monotonic clock, and then a line about dropped ones, if there are any."""
    while (left := until - time.monotonic()) > 0:
        for record in ring.records(left):
            line = joiner.feed(elements.unpack_event(record))
            if line:
                yield line
            if time.monotonic() >= until:
                break
    if ring.was_full():
        yield dropped(time.monotonic_ns())


def _moment(line: Line) -> datetime:
    return datetime.fromtimestamp((line.time + time.time_ns() - time.monotonic_ns()) / 1e9, UTC)


def _as_json(cgroups: _Cgroups, line: Line, service: str | None) -> str:
    stamp = _moment(line).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps(line.document(stamp, cgroups.path(line.cgroup), service))


class _Columns:
    """Lines for people; a column is as wide as its widest cell so far."""

    def __init__(self) -> None:
        self._widths = list(_WIDTHS)

    def __call__(self, line: Line, service: str | None) -> str:
        clock = _moment(line).astimezone().strftime("%H:%M:%S.%f")[:-3]
        if line.outcome == DROPPED:
            return f"{clock}  connects are missing here: they came faster than they were read"
        cells = [
            clock,
            f"{line.process or '?':>7}",
            printable(line.command or "?"),
            printable(service or "?"),
            f"{line.vip}",
            f"-> {line.real_server or 'nobody'}",
            line.outcome,
            f"{line.latency / 1e6:.2f} ms" if line.latency is not None else "",
        ]
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)]
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()


class _Cgroups:
    """Paths of cgroups by their ids, which are inode numbers."""

    def __init__(self) -> None:
        self._root = cgroup.find_root()
        self._paths: dict[int, str] = {}

    def path(self, number: int | None) -> str | None:
        """Return the path below the root, and search again for a new one; None if it is gone or unknown."""
        if number is None:
            return None
        if number not in self._paths:
            for directory, _, _ in os.walk(self._root):
                found = cgroup.identity(Path(directory))
                if found is not None:
                    self._paths[found] = "/" + str(Path(directory).relative_to(self._root)).removeprefix(".")
        return self._paths.setdefault(number, "") or None
