"""The two virtual servers of the self-test. They are always empty, so a refused connect proves that the programs run.

Their addresses are reserved for documentation (192.0.2.1, RFC 5737) and for discarding (100::1, RFC 6666). Their
protocol is UDP, because its connect sends no packet. Instances on one cgroup have different ports. Status, metrics,
logs and names do not show these virtual servers.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import MAX_PORT, Algorithm, Protocol, Vip, VirtualServer

_ADDRESSES: Final = (parse_address("192.0.2.1"), parse_address("100::1"))
SOURCE: Final = "selftest"
"""The source in their labels."""


def is_own(source: str | None) -> bool:
    """Return whether virtual servers of this source belong to the self-test."""
    return source == SOURCE


def virtual_servers(instance: str) -> dict[Vip, VirtualServer]:
    """Return the self-test servers, which every desired state of the instance contains."""
    port = 1 + crc32(instance.encode()) % MAX_PORT
    vips = [Vip(address, port, Protocol.UDP) for address in _ADDRESSES]
    return {vip: VirtualServer(vip, "", SOURCE, Algorithm.RANDOM, ()) for vip in vips}
