"""The parts of a pool that is put together from several: what each adds to it, for `status` and `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from types import MappingProxyType
from typing import Any, Final

from clb_discovery.model.servers import Pool
from clb_discovery.model.service import Service

Parts = Mapping[str, Sequence[Mapping[str, Any]]]
"""The parts of pools, as `configured`, by the names of the pools."""
NO_PARTS: Final[Parts] = MappingProxyType({})


def configured(service: Service) -> list[dict[str, Any]]:
    """Return the parts of a service in the order of the configuration; empty if there is only one."""
    if len(service.parts) == 1:
        return []
    return [{"source": part.source, "priority": part.priority, "share": part.share} for part in service.parts]


def add_parts(
    document: dict[str, Any],
    pool: Pool,
    target_shares: Sequence[float],
    parts: Sequence[Mapping[str, Any]],
) -> None:
    """Add the parts of its pool to the document of a virtual server, unless there is only one.

    :param target_shares: the share of connects that each real server of the pool should get now.
    :param parts: as `configured`; too few if it is not known where the pool comes from.
    """
    count = max(len(parts), *(1 + server.part for server in pool), 1)
    if count == 1:
        return
    unknown = {"source": None, "priority": None, "share": None}
    document["parts"] = []
    for place in range(count):
        own = [server.part == place for server in pool]
        document["parts"].append(
            {
                **(parts[place] if place < len(parts) else unknown),
                "real_servers": sum(own),
                "tiers": sorted({server.priority for server in compress(pool, own)}),
                "target_share": min(1.0, sum(compress(target_shares, own))),
            }
        )
