"""The document of `status --json`, built from the kernel's maps and from the last state that the sidecar wrote.

Its JSON Schema is a file beside this one, and docs/status.md describes each of its keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clb_discovery.documents.causes import by_cause
from clb_discovery.documents.checks import add_checks
from clb_discovery.documents.parts import NO_PARTS, Parts, add_parts
from clb_discovery.documents.shares import standings
from clb_discovery.documents.verdict import empty_services
from clb_discovery.documents.zones import NO_ZONES, Zones, add_zones
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Info, Server
from clb_discovery.layout.health import NO_WORDS, Health, Words
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.structs import FEATURE_ERRNO, FEATURE_LOOP, FEATURE_OPTIONS
from clb_discovery.model.address import format_address
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import RealServer, Vip, needs_outcomes

FORMAT: Final = 1
"""The format of the document. It stays the same as long as changes only add something."""
SCHEMA: Final = "status.schema.json"
"""The file in this package that describes the document."""
_FEATURES: Final = {"errno": FEATURE_ERRNO, "loop": FEATURE_LOOP, "options": FEATURE_OPTIONS}


class Datapath(NamedTuple):
    """The data plane, and whether it is in effect."""

    info: Info | None
    """None if it is not loaded, or is being replaced."""
    installed: Installed
    servers: Mapping[bytes, Server]
    """Counters of connects, by packed member."""
    ineffective: str | None
    """Why the programs are not in effect, or None if they are."""
    records_lost: int
    """How often there was no memory for the record of a socket."""
    overlaps: Sequence[Overlap] = ()
    """Other instances that serve the same VIPs."""
    outcomes: bool = True
    """Whether the program that learns how TCP connects end is attached."""
    words: Words = NO_WORDS
    """What the sidecar says of real servers."""


def document(  # noqa: PLR0913 - the parts of the document
    *,
    instance: str,
    version: str,
    kernel: str,
    datapath: Datapath | None,
    pid: int | None,
    state: Mapping[str, Any],
    state_error: str | None = None,
    listening: Collection[Vip] = (),
    load_error: str | None = None,
    other_layouts: Sequence[int] = (),
) -> dict[str, Any]:
    """Build the document. Scripts rely on its shape.

    :param pid: process id of the running sidecar, or None.
    :param state: the state that the sidecar wrote last: `last_sync`, `config_error`, `metrics_error`,
        `sources`, `unpublished`, `parts`, `checks`, `zone` and `zones`; each may be missing.
    :param state_error: why that state, or part of it, cannot be read.
    :param listening: the VIPs on which a program of this host listens.
    :param load_error: why the last load failed.
    :param other_layouts: the layouts of other versions whose programs are loaded.
    """
    loaded = datapath if datapath and datapath.info else None
    parts = state.get("parts", {})
    virtual = virtual_servers(loaded.installed, loaded.servers, listening, loaded.words, parts) if loaded else []
    add_checks(virtual, state.get("checks", []) if pid is not None else [])
    zone = state.get("zone")
    add_zones(virtual, Zones(zone["name"], state.get("zones", {})) if zone else NO_ZONES)
    return {
        "format": FORMAT,
        "instance": instance,
        "version": version,
        "datapath": _datapath(loaded, kernel) | {"load_error": load_error, "other_layouts": list(other_layouts)},
        "sidecar": {
            "running": pid is not None,
            "pid": pid,
            "last_sync": state.get("last_sync"),
            "config_error": state.get("config_error"),
            "metrics_error": state.get("metrics_error"),
            "state_error": state_error,
        },
        "zone": zone,
        "sources": state.get("sources", []),
        "virtual_servers": virtual,
        "unpublished": state.get("unpublished", []),
        "empty_services": empty_services(virtual),
    }


def _datapath(datapath: Datapath | None, kernel: str) -> dict[str, Any]:
    info = datapath.info if datapath else None
    return {
        "loaded": info is not None,
        "loader": info.loader if info else None,
        "cgroup": info.cgroup if info else None,
        "kernel": kernel,
        "effective": datapath is not None and datapath.ineffective is None,
        "reason": datapath.ineffective if datapath else "the data plane is not loaded",
        "features": {name: bool(info.features & bit) for name, bit in _FEATURES.items()} if info else {},
        "records_lost": datapath.records_lost if datapath else 0,
        "outcomes": datapath is not None and datapath.outcomes,
        "overlaps": [overlap.document() for overlap in datapath.overlaps] if datapath else [],
    }


def virtual_servers(
    installed: Installed,
    servers: Mapping[bytes, Server],
    listening: Collection[Vip] = (),
    words: Words = NO_WORDS,
    parts: Parts = NO_PARTS,
) -> list[dict[str, Any]]:
    """Build the part of the document with the virtual servers, sorted by VIP, from the counters of real servers.

    :param words: what the sidecar says of them.
    :param parts: the parts of pools that have several, by the names of the pools, each as `parts.configured`.
    """
    return [
        _virtual_server(vip, published, servers, words, parts) | {"listens_here": vip in listening}
        for vip, published in sorted(installed.virtual.items())
        if not is_own(published.label.source if published.label else None)
    ]


def _virtual_server(
    vip: Vip, published: Published, servers: Mapping[bytes, Server], words: Words, parts: Parts
) -> dict[str, Any]:
    pool, label = published.pool or (), published.label
    found = standings(vip, published, servers, words)
    refusal = servers.get(elements.refusal(elements.pack_vip(vip)))
    document: dict[str, Any] = {
        "service": label.service if label else None,
        "source": label.source if label else None,
        "address": format_address(vip.address),
        "port": vip.port,
        "protocol": vip.protocol.name.lower(),
        "algorithm": str(published.algorithm) if published.algorithm is not None else None,
        "generation": published.generation,
        "connects": sum(one.counters.connects for one in found),
        "refused": refusal.connects if refusal else 0,
        "needs_outcomes": needs_outcomes(vip, published.health),
        "real_servers": [_real_server(*one) for one in found],
    }
    add_parts(document, pool, [one.target_share for one in found], parts.get(label.source, ()) if label else ())
    for real, server in zip(document["real_servers"], pool if "parts" in document else (), strict=False):
        real["part"] = server.part
    return document


def _real_server(server: RealServer, found: Server, health: Health, target: float) -> dict[str, Any]:
    return {
        "address": format_address(server.address),
        "port": server.port,
        "weight": server.weight,
        "priority": server.priority,
        "target_share": target,
        "state": "ejected" if health is Health.EJECTED else "active",
        "suspect": health is Health.SUSPECT,
        "probing": health is Health.EJECTED and bool(found.probing),
        "connects": found.connects,
        "active": found.active,
        "failures": found.failures,
        "causes": {cause.name.lower(): count for cause, count in by_cause(found).items()},
    }
