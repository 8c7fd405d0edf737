"""`status`: show the maps, and the state that the sidecar reports."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from clb_discovery import __version__, documents
from clb_discovery.cli.output import need_not_be_read
from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.neighbours import find_overlaps
from clb_discovery.datapath.pins import Pins, instance_names
from clb_discovery.datapath.sockets.listening import listening_here
from clb_discovery.documents.reported import usable
from clb_discovery.documents.selection import of_problems, of_services, unmatched
from clb_discovery.documents.status import SCHEMA, Datapath, document
from clb_discovery.documents.verdict import problems
from clb_discovery.errors import ClbError, HostError
from clb_discovery.hints import loaded_instances


def main(typed: argparse.Namespace) -> int:
    """Print the status, once or until interrupted.

    :returns: 1 if there are problems and `--problems` is given.
    :raises ClbError: if `--service` names nothing that is there.
    """
    if typed.schema:
        print(resources.files(documents).joinpath(SCHEMA).read_text("utf-8"), end="")  # noqa: T201 - this is the output
        return 0
    name = read_options(typed, os.environ).instance
    if typed.watch:
        from clb_discovery.terminal.watch import Form, watch  # noqa: PLC0415 - only this needs it

        form = Form(typed.json, typed.problems, typed.sources)
        return watch(lambda: _wanted(read_status(name), typed), typed.interval / 1000, form)
    whole = read_status(name)
    objection = unmatched(whole, typed.only_service) if whole["datapath"]["loaded"] else None
    if objection:
        raise ClbError(objection)
    found = _wanted(whole, typed)
    with need_not_be_read():
        _show(found, typed)
    return int(typed.problems and any(problems(found)))


def read_status(name: str) -> dict[str, Any]:
    """Return the document of `status --json` for an instance."""
    pins, instance = Pins(name), Instance(name)
    datapath = _read_datapath(pins)
    state, state_error = _read_state(instance)
    return document(
        instance=name,
        version=__version__,
        kernel=os.uname().release,
        datapath=datapath,
        pid=instance.holder(),
        state=state,
        state_error=state_error,
        listening=listening_here(datapath.installed.virtual) if datapath else (),
        load_error=instance.load_error(),
        other_layouts=pins.other_layout_numbers(),
    )


def _read_state(instance: Instance) -> tuple[Mapping[str, Any], str | None]:
    """Return the last state of the sidecar, and why it, or a part of it, cannot be read."""
    try:
        return usable(instance.read_state())
    except HostError as error:
        return {}, f"{error}; restart the sidecar, which replaces it"


def print_json(found: dict[str, Any]) -> None:
    """Print a document for scripts."""
    print(_json(found, ""))  # noqa: T201 - this is the output


def _json(value: object, indent: str) -> str:
    """Return JSON in which an object or array of plain values is one line; json.dumps with `indent` is slow."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(one, dict | list) for one in inside):
        return json.dumps(value)
    line = f"\n{indent}  "
    values = [_json(one, f"{indent}  ") for one in inside]
    if isinstance(value, dict):
        named = (f"{json.dumps(key)}: {one}" for key, one in zip(value, values, strict=True))
        return f"{{{line}{f',{line}'.join(named)}\n{indent}}}"
    return f"[{line}{f',{line}'.join(values)}\n{indent}]"


def _wanted(found: dict[str, Any], typed: argparse.Namespace) -> dict[str, Any]:
    """Return the part of a document that the options select."""
    if typed.only_service:
        found = of_services(found, typed.only_service)
    return of_problems(found) if typed.problems and typed.json else found


def _show(found: dict[str, Any], typed: argparse.Namespace) -> None:
    if typed.json:
        print_json(found)
        return
    from clb_discovery.terminal.problems import Problems  # noqa: PLC0415 - JSON does without
    from clb_discovery.terminal.screen import show  # noqa: PLC0415 - JSON does without
    from clb_discovery.terminal.status import Status  # noqa: PLC0415 - JSON does without

    if typed.problems:
        show(Problems(found))
        return
    note = None if found["datapath"]["loaded"] else loaded_instances(instance_names())
    show(Status(found, datetime.now(UTC), all_sources=typed.sources, note=note))


def _read_datapath(pins: Pins) -> Datapath | None:
    if not pins.have_maps():
        return None
    with Maps(pins) as maps:
        info = maps.info()
        if info is None:
            return None
        installed = maps.read()
        ineffective = loader.objection(pins, Path(info.cgroup))
        overlaps, outcomes = find_overlaps(pins, info.cgroup), loader.follows_outcomes(pins, Path(info.cgroup))
        counters, lost, words = maps.servers(installed), maps.records_lost(), maps.words(installed)
        return Datapath(info, installed, counters, ineffective, lost, overlaps, outcomes, words)
