"""`trace`: each connect live, from the programs' ring buffer.

Programs write only until the time in `clb_listener`, which a reader keeps moving on. So a reader that was killed costs
nothing after a few seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

from clb_discovery.cli.outcomes import followed
from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath import cgroup
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins, instance_names
from clb_discovery.datapath.ring import Ring
from clb_discovery.documents.trace import DROPPED, Joiner, Line, Wanted, dropped
from clb_discovery.errors import ClbError
from clb_discovery.hints import load_command, loaded_instances
from clb_discovery.layout import elements, structs
from clb_discovery.layout.installed import service_names
from clb_discovery.model.own_servers import is_own
from clb_discovery.stderr import say
from clb_discovery.terminal import screen, trace
from clb_discovery.text import did_you_mean, printable

_RENEW: Final = 1.0  # seconds between two renewals of that time
_LISTEN: Final = 3_000_000_000  # nanoseconds for which programs write after a renewal


def main(typed: argparse.Namespace) -> int:
    """Print a line for each connect that the filters select, until interrupted, or until the limit is reached.

    :raises ClbError: if nothing is loaded.
    :raises BusyError: if another process reads the ring buffer, which has one reader.
    """
    wanted = Wanted(frozenset(typed.only_service), frozenset(typed.only_command), frozenset(typed.outcome))
    pins = Pins(read_options(typed, os.environ).instance)
    instance = Instance(pins.instance)
    _require_loaded(pins)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as of timeout(1): what was attached has to be detached
        if signal.getsignal(number) is not signal.SIG_IGN:  # as below nohup(1)
            signal.signal(number, _end)
    with (
        Maps(pins) as maps,
        instance.tracing(),
        followed(pins, instance, maps),
        closing(Ring(maps.events(), structs.EVENTS_BYTES)) as ring,
    ):
        _report_unknown(wanted.services, maps)
        ring.skip()
        show, printed = _print_json if typed.json else _Table().show, 0
        try:
            for document in _documents(maps, ring, wanted):
                show(document)
                printed += document["outcome"] != DROPPED
                if printed == typed.limit > 0:
                    break
        finally:
            maps.listen_until(0)
    return 0


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # as a shell reports a signal


def _require_loaded(pins: Pins) -> None:
    if pins.have_maps():
        return
    others = [name for name in instance_names() if name != pins.instance]
    hint = f"{loaded_instances(others)}; or " if others else ""
    load = load_command(pins.instance)
    raise ClbError(f"the data plane of instance {pins.instance!r} is not loaded; {hint}run: {load}")


def _report_unknown(services: frozenset[str], maps: Maps) -> None:
    """Report services without a virtual server, such as a mistyped name: silence would look like no connects."""
    known = sorted(service_names(maps.read())) if services else []
    for service in sorted(services.difference(known)):
        hint = did_you_mean(service, known, "see clb-discovery status")
        text = f"no virtual server belongs to service {service!r} now; waiting for one{hint}"
        say(printable(f"clb-discovery: {text}"))


def _documents(maps: Maps, ring: Ring, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield the objects of `trace --json` as connects come, without end."""
    info = maps.info()
    refusal = "ECONNREFUSED" if info and info.features & structs.FEATURE_ERRNO else "EPERM"
    joiner = Joiner(refusal, since=time.monotonic_ns())
    cgroups, label_of = _Cgroups(), cache(maps.label)
    while True:
        maps.listen_until(time.monotonic_ns() + _LISTEN)
        label_of.cache_clear()  # because they may change
        for line in _lines(ring, joiner, time.monotonic() + _RENEW):
            label = label_of(line.key) if line.key else None
            service = label.service if label else None
            if not (label and is_own(label.source)) and wanted.takes(line, service):
                yield line.document(_moment(line), cgroups.path(line.cgroup), service)


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


def _moment(line: Line) -> str:
    """Return the time of a line in the format of RFC 3339."""
    moment = datetime.fromtimestamp((line.time + time.time_ns() - time.monotonic_ns()) / 1e9, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)  # noqa: T201 - this is the output


class _Table:
    """Lines for people, under a header that a terminal repeats for each screen."""

    def __init__(self) -> None:
        """Print the header, so that the first connect may take its time."""
        self._print_header()

    def show(self, document: dict[str, Any]) -> None:
        """Print one line."""
        if self._on_terminal and self._rows >= shutil.get_terminal_size().lines - 1:
            self._print_header()
        print(trace.row(document, self._width), flush=True)  # noqa: T201 - this is the output
        self._rows += 1

    def _print_header(self) -> None:
        # `show` also lets the stream escape characters that its encoding lacks, for the rows, too.
        screen.show(screen.plain(trace.header(self._width), "bold"))
        self._rows = 1

    @property
    def _on_terminal(self) -> bool:
        return screen.is_terminal(sys.stdout)

    @property
    def _width(self) -> int | None:
        return shutil.get_terminal_size().columns if self._on_terminal else None


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
