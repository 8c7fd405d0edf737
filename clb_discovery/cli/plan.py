"""`plan`: what `run` would change."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from clb_discovery import log
from clb_discovery.cli.look_ahead import look_ahead, read_installed
from clb_discovery.cli.output import need_not_be_read
from clb_discovery.cli.published_files import published_files
from clb_discovery.cli.read_options import read_options
from clb_discovery.cli.status import print_json
from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.datapath.instance import RECORDS, Instance
from clb_discovery.datapath.pins import Pins
from clb_discovery.documents.parts import configured
from clb_discovery.documents.plan import preview
from clb_discovery.documents.usage import usage
from clb_discovery.documents.zones import Zones, by_zone
from clb_discovery.errors import HostError, SourceError
from clb_discovery.hosts_file.block import names
from clb_discovery.hosts_file.file import names_ahead, real_path
from clb_discovery.layout.installed import Installed


def main(typed: argparse.Namespace) -> int:
    """Print the changes; return 2 if there are any, for scripts."""
    options = read_options(typed, os.environ)
    log.configure("auto", "error")
    found = plan_document(options, offline=typed.offline)
    with need_not_be_read():
        _show(found, as_json=typed.json)
    return 2 if found["changes"] or found["names"] else 0


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    from clb_discovery.terminal.plan import render  # noqa: PLC0415 - JSON does without
    from clb_discovery.terminal.screen import show  # noqa: PLC0415 - JSON does without

    show(render(found))


def plan_document(options: Options, *, offline: bool) -> dict[str, Any]:
    """Return the document of `plan --json`; raises ClbError if a source does not answer, because it is then unknown.

    :param offline: query no source, and compare with nothing if the maps may not be read.
    """
    pins = Pins(options.instance)
    services = read_services(options)
    installed, unread = _installed(pins, offline=offline)
    ahead = look_ahead(options, services, installed, offline=offline)
    for error in ahead.lost.values():
        raise error
    found, after = ahead.publication, ahead.publication.plan.result
    files = _names(Instance(pins.instance), options.hosts_file, after)
    by_source = found.desired.basis.by_source
    refused = [(by_source[source].name, item) for source, items in found.desired.rejected.items() for item in items]
    refused += [
        (one.service.name, item)
        for source, one in ahead.following.items()
        for item in (*ahead.left_out(source), *one.refused, *found.resolved.refused.get(source, ()))
    ]
    without_vip = {source: one.without_vip for source, one in usage(found).items()}
    parts = {service.source: configured(service) for service in found.resolved.services}
    waiting = {ahead.following[source].service.source for source in ahead.waiting}
    zones = Zones(ahead.zone, {pool: by_zone(own) for pool, own in found.desired.zones.items()})
    document = preview(installed, after, refused, waiting, names=files, parts=parts, zones=zones)
    document["notes"] = [
        {"service": one.service.name, "note": note}
        for source, one in ahead.following.items()
        for note in (
            _failure(source, ahead.failed.get(source)),
            *(ahead.note(source), ahead.why_empty.get(source)),
            *without_vip.pop(one.service.source, ()),
        )
        if note
    ]
    document["notes"] += [
        {"service": service.name, "note": found.desired.remarks[service.source]}
        for service in found.resolved.services
        if service.source in found.desired.remarks
    ]
    if ahead.zone_error:
        note = f"not read, so pools do not follow zones here; a sidecar keeps the last known one: {ahead.zone_error}"
        document["notes"].append({"service": "zone of this host", "note": note})
    document["refused"] += [
        {"service": one.service, "server": str(one.vip), "reason": one.reason} for one in found.unpublished
    ]
    document["unqueried"] = ahead.unqueried
    document["unread"] = unread
    return document


def _failure(source: str, error: SourceError | None) -> str | None:
    """Return the remark for a part whose source did not answer, while others of the same service did."""
    return f"{source} does not answer, so its real servers stay as they are: {error}" if error else None


def _installed(pins: Pins, *, offline: bool) -> tuple[Installed, str | None]:
    """Return what is installed; offline, if it may not be read, nothing, and why."""
    try:
        return read_installed(pins), None
    except HostError as error:
        if not offline:
            raise HostError(f"{error}, or add --offline, which compares with nothing installed") from None
        return Installed(), str(error)


def _names(instance: Instance, path: Path | None, after: Installed) -> list[dict[str, Any]]:
    """Return the changes of hosts files: of the one in the options, and of previous ones, which lose their names."""
    here = real_path(path) if path else None
    found = [names_ahead(here, instance.name, names(after.virtual).addresses)] if here else []
    for before in sorted(set[Path]().union(*(published_files(instance, record) for record in RECORDS))):
        if before != here:
            with suppress(HostError):  # it stays as it is, and the log of the sidecar has the reason
                found.append(names_ahead(before, instance.name, {}))
    return [change for change in found if change is not None]
