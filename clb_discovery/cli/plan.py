"""Looking ahead: ask every source once, and work out what a sidecar that started now would publish. Nothing is changed.

`plan` and `check` print different things of one `Outlook`, which comes about by the very functions that `run` uses.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from clb_discovery.config.services import read_services, vip_ranges
from clb_discovery.config.sources import open_sources
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.documents.plan import preview
from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.hosts_file.block import names
from clb_discovery.hosts_file.file import names_ahead, real_path
from clb_discovery.layout.installed import Installed, installed_servers
from clb_discovery.model import own_servers
from clb_discovery.model.address import Network
from clb_discovery.model.answer import Answer, Failure, Outcome, Refused
from clb_discovery.model.service import CATALOG, Service
from clb_discovery.model.usable import objection
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from clb_discovery.sources.base import CatalogSource, Source
from clb_discovery.state import catalog
from clb_discovery.state.service import ServiceState


class Outlook(NamedTuple):
    """What a sidecar would make of one answer of each source."""

    following: Mapping[str, ServiceState]
    """By source; services of a catalog that opt in are among them."""
    outcomes: Mapping[str, Outcome]
    """By source; of services in a catalog that do not opt in, too."""
    failed: Mapping[str, SourceError]
    """The sources that did not answer. What is held of them stays, as it does while a sidecar runs."""
    waiting: Collection[str]
    """Sources whose answer removes much, so that a sidecar holds it first; here it counts."""
    publication: Publication

    def left_out(self, source: str) -> list[Refused]:
        """Return the members that the source's answer itself leaves out."""
        outcome = self.outcomes.get(source)
        return list(outcome.left_out) if isinstance(outcome, Answer) else []

    def note(self, source: str) -> str | None:
        """Return what people should know of the source's answer."""
        outcome = self.outcomes.get(source)
        return outcome.note if isinstance(outcome, Answer) else self.following[source].beyond


def look_ahead(options: argparse.Namespace, services: Sequence[Service], installed: Installed) -> Outlook:
    """Ask every source once; one that fails does not keep the others from being asked.

    :param services: those of `read_services`.
    :param held: what the kernel holds.
    :raises UsageError: if a source cannot be made.
    """
    following = {service.source: ServiceState(service) for service in services}
    following |= catalog.restored(services, installed, {}, following, options.max_services)
    asking = _Asking(services, installed, following)
    asyncio.run(asking.run(options))
    waiting = frozenset(source for source, one in following.items() if one.guarded.held)
    following = {source: one.confirmed() for source, one in following.items()}
    wanted = Wanted(
        services,
        catalog.claims(following.values()),
        {source: one.guarded.good for source, one in following.items() if one.known},
        own_servers.virtual_servers(options.instance),
        vip_ranges(options),
        options.real_range,
        complete=not asking.failed,
    )
    return Outlook(following, asking.outcomes, asking.failed, waiting, publication(installed, wanted))


def read_installed(pins: Pins) -> Installed:
    """Return what the kernel holds of an instance; nothing where it is not loaded.

    :raises HostError: if one may not look there.
    """
    if not pins.have_maps():
        return Installed()
    with Maps(pins) as maps:
        return maps.read()


def plan_document(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document of `plan --json`.

    :raises ClbError: also if a source does not answer, since then nobody knows.
    """
    pins = Pins(options.instance)
    services = read_services(options)
    installed = read_installed(pins)
    ahead = look_ahead(options, services, installed)
    for error in ahead.failed.values():
        raise error
    found = ahead.publication
    after = found.plan.result
    files = _names(Instance(pins.instance), options.hosts_file, after)
    document = preview(installed, after, found.desired.rejected, ahead.waiting, found.wanted.own.keys(), names=files)
    document["refused"] += [
        {"service": one.service.name, "server": item.value, "reason": item.reason}
        for source, one in ahead.following.items()
        for item in (*ahead.left_out(source), *found.resolved.refused.get(source, ()))
    ]
    document["notes"] = [
        {"service": one.service.name, "note": note}
        for source, one in ahead.following.items()
        if (note := ahead.note(source))
    ]
    document["refused"] += [
        {"service": one.service, "server": str(one.vip), "reason": one.reason} for one in found.unpublished
    ]
    return document


def _names(instance: Instance, path: Path | None, after: Installed) -> list[dict[str, Any]]:
    """Return what would change in hosts files: in the one that is named, and in another of before, which is left."""
    before = instance.hosts_file()
    files = {real_path(path): names(after.virtual, own_servers.SOURCE).addresses} if path else {}
    if before:
        files.setdefault(before, {})
    found = (names_ahead(file, instance.name, addresses) for file, addresses in files.items())
    return [change for change in found if change is not None]


class _Asking:
    """Let every source answer as a sidecar would hear it, were it started now; services that opt in are added."""

    def __init__(self, services: Sequence[Service], installed: Installed, following: dict[str, ServiceState]) -> None:
        self._services = services
        self._following = following
        self._before = installed_servers(installed, [*services, *catalog.claimed(following.values())])
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, SourceError] = {}

    async def run(self, options: argparse.Namespace) -> None:
        """Ask all of them."""
        following, real_ranges = self._following, options.real_range
        async with open_sources(options, self._services) as sources:
            await asyncio.gather(*(self._ask(source, asked, real_ranges) for source, asked in sources.items()))
            listed = sources.get(CATALOG)
            if isinstance(listed, CatalogSource):
                following |= catalog.joined(self._services, following[CATALOG].listed, following, options.max_services)
                following[CATALOG] = replace(following[CATALOG], unfollowed=catalog.unfollowed(following))
                opting = [one.service for one in following.values() if one.from_catalog]
                asked_of = ((service.source, listed.service(service.name)) for service in opting)
                await asyncio.gather(*(self._ask(source, asked, real_ranges) for source, asked in asked_of))
        self.failed = {source: self.failed[source] for source in following if source in self.failed}

    async def _ask(self, source: str, asked: Source, real_ranges: Sequence[Network]) -> None:
        one = self._following[source]
        if source in self._before:
            one = one.seeded(self._before[source], None, {})
        outcome: Outcome
        try:
            outcome = await asked.next()
        except SourceError as error:
            outcome = Failure(str(error), unusable=isinstance(error, UnusableError))
            if not (outcome.unusable and one.from_catalog):  # which a sidecar does without
                self.failed[source] = error
        self._following[source] = one.after(
            outcome,
            time.monotonic(),
            datetime.now(UTC),
            lambda address: objection(address, frozenset(), real_ranges) is None,
        )
        self.outcomes[source] = outcome
