"""Find programs that listen on a VIP, in the network namespace of this thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from clb_discovery.datapath.sockets.listeners import Listener, listeners, local_networks, taken_over
from clb_discovery.model.address import Address, Network, in_network
from clb_discovery.model.servers import Protocol, Vip

_NET: Final = Path("/proc/thread-self/net")
_TABLES: Final = {Protocol.TCP: ("tcp", "tcp6"), Protocol.UDP: ("udp", "udp6")}


def listening_here(vips: Iterable[Vip]) -> dict[Vip, Listener]:
    """Return the VIPs on which a program of this host listens, with one listener of each; as `listeners` describes.

    Nothing is raised: a table that cannot be read, such as one of a disabled family, counts as empty.
    """
    networks: list[Network] = []

    @cache
    def is_local(address: Address) -> bool:
        if not networks:
            with suppress(ValueError):
                networks.extend(local_networks(_lines("fib_trie"), _lines("ipv6_route")))
        return any(in_network(address, network) for network in networks)

    return taken_over(vips, _listeners(), is_local)


def _listeners() -> Iterator[Listener]:
    for protocol, names in _TABLES.items():
        for name in names:
            with suppress(ValueError):
                yield from listeners(protocol, _lines(name))


def _lines(table: str) -> Iterator[str]:
    with suppress(OSError), (_NET / table).open(encoding="ascii") as lines:
        yield from lines
