"""The document of `plan --json`: the changes that a plan would make, one virtual server at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from clb_discovery.documents.names import endpoint
from clb_discovery.documents.parts import NO_PARTS, Parts, add_parts
from clb_discovery.documents.shares import planned_shares
from clb_discovery.documents.zones import NO_ZONES, Zones, add_zones
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.address import format_address
from clb_discovery.model.answer import Refusal
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Pool, RealServer, Vip
from clb_discovery.publication.changes import Changes, changes, setting_changes


def preview(  # noqa: PLR0913 - the parts of the document
    before: Installed,
    after: Installed,
    refused: Iterable[tuple[str, Refusal]],
    waiting: Collection[str],
    *,
    names: Iterable[Mapping[str, Any]] = (),
    parts: Parts = NO_PARTS,
    zones: Zones = NO_ZONES,
) -> dict[str, Any]:
    """Build the document that `plan --json` prints, from the kernel's maps before and after the plan.

    :param refused: each with the name of its service.
    :param waiting: names of pools with removals that are held until another answer confirms them.
    :param names: hosts files that would change, each with the lines that are `added` and `removed`.
    :param parts: the parts of pools that have several, by the names of the pools, each as `parts.configured`.
    :param zones: the zones of real servers.
    """
    vips = sorted(before.virtual.keys() | after.virtual.keys())
    found = [_change(vip, before.virtual.get(vip), after.virtual.get(vip), waiting, parts) for vip in vips]
    for vip, change in zip(vips, found, strict=True):
        if change and vip in after.virtual:
            _add_zones(change, after.virtual[vip].pool or (), zones)
    return {
        "changes": [change for change in found if change is not None],
        "refused": [{"service": name, "server": str(item.value), "reason": item.reason} for name, item in refused],
        "names": list(names),
    }


def _change(
    vip: Vip, old: Published | None, new: Published | None, waiting: Collection[str], parts: Parts
) -> dict[str, Any] | None:
    label = there.label if (there := new or old) else None
    source = label.source if label else None
    if is_own(source):
        return None
    pools = changes((old.pool if old else None) or (), (new.pool if new else None) or ())
    settings = {name: list(both) for name, both in setting_changes(old, new).items()}
    if old and new and pools == Changes((), (), ()) and not settings and old.pool is not None:
        return None
    document: dict[str, Any] = {
        "action": "change" if old and new else "add" if new else "remove",
        "service": label.service if label else None,
        "source": source,
        "address": format_address(vip.address),
        "port": vip.port,
        "protocol": vip.protocol.name.lower(),
        "held": new is not None and source in waiting,
        "settings": settings,
        "added": [_server(server) for server in pools.added],
        "removed": [_server(server) for server in pools.removed],
        "changed": [_server(server) | {"was": _share(was)} for was, server in pools.changed],
    }
    if new:
        pool = new.pool or ()
        shares = planned_shares(pool)
        add_parts(document, pool, shares, parts.get(source, ()) if source else ())
    return document


def _add_zones(change: dict[str, Any], pool: Pool, zones: Zones) -> None:
    """Add the zones of a pool, and the zone of each real server that is added or changed."""
    shares = planned_shares(pool)
    reals = [_server(server) | {"target_share": share} for server, share in zip(pool, shares, strict=True)]
    of_pool: dict[str, Any] = {"source": change["source"], "real_servers": reals}
    add_zones([of_pool], zones)
    if "zones" in of_pool:
        change["zones"] = of_pool["zones"]
        found = {endpoint(real): real["zone"] for real in reals}
        for real in (*change["added"], *change["changed"]):
            real["zone"] = found[endpoint(real)]


def _server(server: RealServer) -> dict[str, Any]:
    return {"address": format_address(server.address), "port": server.port, **_share(server)}


def _share(server: RealServer) -> dict[str, int]:
    return {"weight": server.weight, "priority": server.priority}
