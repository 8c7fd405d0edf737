"""The real servers that do not count for the capacity of a zone, by pool. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.model.servers import Endpoint


def by_pool(installed: Installed, members: Iterable[bytes], pools: Collection[str]) -> dict[str, frozenset[Endpoint]]:
    """Return the endpoints of packed members, by the names of their pools.

    A server that is out at one VIP of a service is taken as out at all of them: they have one pool.

    :param pools: only of these.
    """
    found: defaultdict[str, set[Endpoint]] = defaultdict(set)
    for member in members:
        vip, address, port = elements.unpack_member(member)
        published = installed.virtual.get(elements.unpack_vip(vip))
        if published and published.label and published.label.source in pools:
            found[published.label.source].add((address, port))
    return {pool: frozenset(endpoints) for pool, endpoints in found.items()}
