"""`trace`: each connect live, from the programs' ring buffer.

Programs write only while somebody listens: `clb_listener` holds a time that is moved on as long as we live, so that a
killed reader costs nothing for longer than a moment.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from clb_discovery.core import layout
from clb_discovery.core.trace import Joiner, Line
from clb_discovery.datapath import cgroup
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.ring import Ring
from clb_discovery.runtime import Instance

_RENEW: Final = 1.0
"""Seconds between two renewals of the time until which we listen."""
_LISTEN: Final = 3_000_000_000
"""Nanoseconds until which we listen, counted from each renewal."""


def follow(pins: Pins, *, as_json: bool) -> None:
    """Print a line for each connect until interrupted.

    :raises HostError: if nothing is loaded.
    :raises BusyError: if somebody else reads the ring buffer, which has room for one.
    """
    joiner, cgroups = Joiner(), _Cgroups()
    with (
        Instance(pins.instance).tracing(),
        Maps(pins) as maps,
        closing(Ring(maps.events(), layout.EVENTS_BYTES)) as ring,
    ):
        ring.skip()
        try:
            while True:
                maps.listen_until(time.monotonic_ns() + _LISTEN)
                renew_at = time.monotonic() + _RENEW
                while (left := renew_at - time.monotonic()) > 0:
                    for record in ring.records(left):
                        line = joiner.feed(layout.unpack_event(record))
                        if line:
                            _print(line, cgroups, as_json=as_json)
        finally:
            maps.listen_until(0)


def _print(line: Line, cgroups: _Cgroups, *, as_json: bool) -> None:
    moment = datetime.fromtimestamp((line.time + time.time_ns() - time.monotonic_ns()) / 1e9, UTC)
    if as_json:
        stamp = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        text = json.dumps(line.document(stamp, cgroups.path(line.cgroup)))
    else:
        clock = moment.astimezone().strftime("%H:%M:%S.%f")[:-3]
        latency = f" in {line.latency / 1e6:.2f} ms" if line.latency is not None else ""
        command = "".join(sign if sign.isprintable() else "?" for sign in line.command or "?")
        text = (
            f"{clock}  {line.process or '?':>7} {command:<15}  {line.vip} -> {line.real_server or 'nobody'}  "
            f"{line.outcome}{latency}"
        )
    print(text, flush=True)  # noqa: T201 - this is the output


class _Cgroups:
    """Paths of cgroups by their ids, which are inode numbers."""

    def __init__(self) -> None:
        self._root = cgroup.find_root()
        self._paths: dict[int, str] = {}

    def path(self, number: int | None) -> str | None:
        """Return the path below the root, looking again for one that is new; None if it is gone or was never told."""
        if number is None:
            return None
        if number not in self._paths:
            for directory, _, _ in os.walk(self._root):
                found = cgroup.identity(Path(directory))
                if found is not None:
                    self._paths[found] = "/" + str(Path(directory).relative_to(self._root)).removeprefix(".")
        return self._paths.setdefault(number, "") or None
