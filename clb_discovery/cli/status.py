"""`status`: show the maps, and the state that the sidecar reports."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from clb_discovery import __version__
from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.neighbours import find_overlaps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.listening import listening_here
from clb_discovery.documents.status import Datapath, document


def main(typed: argparse.Namespace) -> int:
    """Print the status, once or until interrupted."""
    instance = read_options(typed, os.environ).instance
    if typed.watch:
        from clb_discovery.terminal.watch import watch  # noqa: PLC0415 - only this needs it

        watch(partial(read_status, instance), typed.interval / 1000, as_json=typed.json)
    found = read_status(instance)
    if typed.json:
        print_json(found)
        return 0
    from clb_discovery.terminal.screen import show  # noqa: PLC0415 - JSON does without
    from clb_discovery.terminal.status import Status  # noqa: PLC0415 - JSON does without

    show(Status(found, datetime.now(UTC)))
    return 0


def read_status(name: str) -> dict[str, Any]:
    """Return the document of `status --json` for an instance."""
    pins, instance = Pins(name), Instance(name)
    datapath = _read_datapath(pins)
    return document(
        instance=name,
        version=__version__,
        kernel=os.uname().release,
        datapath=datapath,
        pid=instance.holder(),
        state=instance.read_state(),
        listening=listening_here(datapath.installed.virtual) if datapath else (),
    )


def print_json(found: dict[str, Any]) -> None:
    """Print a document for scripts."""
    print(json.dumps(found, indent=2))  # noqa: T201 - this is the output


def _read_datapath(pins: Pins) -> Datapath | None:
    if not pins.have_maps():
        return None
    with Maps(pins) as maps:
        info = maps.info()
        if info is None:
            return None
        installed = maps.read()
        ineffective = loader.objection(pins, Path(info.cgroup))
        overlaps = find_overlaps(pins, info.cgroup)
        return Datapath(info, installed, maps.servers(installed), ineffective, maps.records_lost(), overlaps)
