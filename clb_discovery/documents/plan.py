"""The document of `plan --json`: the changes that a plan would make, one virtual server at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.address import format_address
from clb_discovery.model.answer import Refusal
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import RealServer, Vip
from clb_discovery.publication.changes import Changes, changes, setting_changes


def preview(
    before: Installed,
    after: Installed,
    refused: Iterable[tuple[str, Refusal]],
    waiting: Collection[str],
    *,
    names: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build the document that `plan --json` prints, from the kernel's maps before and after the plan.

    :param refused: each with the name of its service.
    :param waiting: sources whose removals are held until another answer confirms them.
    :param names: hosts files that would change, each with the lines that are `added` and `removed`.
    """
    vips = sorted(before.virtual.keys() | after.virtual.keys())
    found = (_change(vip, before.virtual.get(vip), after.virtual.get(vip), waiting) for vip in vips)
    return {
        "changes": [change for change in found if change is not None],
        "refused": [{"service": name, "server": str(item.value), "reason": item.reason} for name, item in refused],
        "names": list(names),
    }


def _change(vip: Vip, old: Published | None, new: Published | None, waiting: Collection[str]) -> dict[str, Any] | None:
    label = there.label if (there := new or old) else None
    source = label.source if label else None
    if is_own(source):
        return None
    pools = changes((old.pool if old else None) or (), (new.pool if new else None) or ())
    settings = {name: list(both) for name, both in setting_changes(old, new).items()}
    if old and new and pools == Changes((), (), ()) and not settings and old.pool is not None:
        return None
    return {
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


def _server(server: RealServer) -> dict[str, Any]:
    return {"address": format_address(server.address), "port": server.port, **_share(server)}


def _share(server: RealServer) -> dict[str, int]:
    return {"weight": server.weight, "priority": server.priority}
