"""`status`: read the maps and what the sidecar reports of itself."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from clb_discovery import __version__
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.neighbours import find_overlaps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.listening import listening_here
from clb_discovery.documents.status import Datapath, document


def status(options: argparse.Namespace) -> int:
    """Print what the kernel does now, once or until interrupted."""
    if options.watch:
        from clb_discovery.terminal.watch import watch  # noqa: PLC0415 - as the head of cli/commands says

        watch(partial(read_status, options.instance), options.interval / 1000, as_json=options.json)
    found = read_status(options.instance)
    if options.json:
        print_json(found)
        return 0
    from clb_discovery.terminal.screen import show  # noqa: PLC0415 - as the head of cli/commands says
    from clb_discovery.terminal.status import Status  # noqa: PLC0415 - as the head of cli/commands says

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
