"""The document that `status --json` prints, put together from what the kernel holds and what the sidecar said last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from clb_discovery.core import layout
from clb_discovery.core.address import format_address
from clb_discovery.core.held import Held, Published
from clb_discovery.core.layout import FEATURE_ERRNO, Info
from clb_discovery.core.model import RealServer, Vip


class Datapath(NamedTuple):
    """What is loaded, and whether it works."""

    info: Info
    held: Held
    counters: Mapping[bytes, int]
    """Connects by packed member."""
    ineffective: str | None
    """Why connects do not meet the programs, or None if they do."""


def document(  # noqa: PLR0913 - the parts of the document
    *,
    instance: str,
    version: str,
    kernel: str,
    datapath: Datapath | None,
    pid: int | None,
    state: Mapping[str, Any],
    hidden: frozenset[Vip],
) -> dict[str, Any]:
    """Build the document; its shape is part of the contract with scripts.

    :param datapath: None where nothing is loaded.
    :param pid: of the running sidecar, or None.
    :param state: what the sidecar said last, with `last_sync` and `sources`.
    :param hidden: virtual servers of our own that are nobody's business.
    """
    return {
        "instance": instance,
        "version": version,
        "datapath": _datapath(datapath, kernel),
        "sidecar": {"running": pid is not None, "pid": pid, "last_sync": state.get("last_sync")},
        "sources": state.get("sources", []),
        "virtual_servers": [
            _virtual_server(vip, published, datapath.counters)
            for vip, published in sorted(datapath.held.virtual.items())
            if vip not in hidden
        ]
        if datapath
        else [],
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
        "features": {"errno": bool(info.features & FEATURE_ERRNO)} if info else {},
    }


def _virtual_server(vip: Vip, published: Published, counters: Mapping[bytes, int]) -> dict[str, Any]:
    key = layout.pack_vip(vip)
    return {
        "service": published.label.service if published.label else None,
        "source": published.label.source if published.label else None,
        "address": format_address(vip.address),
        "port": vip.port,
        "protocol": vip.protocol.name.lower(),
        "algorithm": published.algorithm.name.lower().replace("_", "-") if published.algorithm is not None else None,
        "generation": published.generation,
        "connects": sum(counters.get(layout.pack_member(key, server), 0) for server in published.pool or ()),
        "refused": counters.get(layout.refusal(key), 0),
        "real_servers": [_real_server(key, server, counters) for server in published.pool or ()],
    }


def _real_server(key: bytes, server: RealServer, counters: Mapping[bytes, int]) -> dict[str, Any]:
    return {
        "address": format_address(server.address),
        "port": server.port,
        "weight": server.weight,
        "priority": server.priority,
        "state": "active",
        "connects": counters.get(layout.pack_member(key, server), 0),
        "active": 0,
        "failures": 0,
    }
