"""A writer that replaces pools at full rate, and records when each set was visible.

Usage: publisher.py INSTANCE PORT LOG [FIRST]. Set after set of one cycle is published on a VIP of each family until the
program is killed; FIRST is the number of the first set. Before a publication starts a line `begin NUMBER NANOSECONDS`
is written to LOG, and `swap NUMBER NANOSECONDS` when its virtual servers have been replaced.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final

from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.model import own_servers
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Algorithm, Pool, Protocol, RealServer, Vip, VirtualServer
from clb_discovery.publication.plan import plan
from clb_discovery.publication.steps import Store

VIP4: Final = "10.64.0.1"
VIP6: Final = "fd00:64::1"
IPV6_REALS: Final = "fd00:c1b::"
"""A /64 that the test makes local."""

SMALL: Final = 4
LARGE: Final = 1000
CYCLE: Final = 200
"""Number of sets until the first one is repeated; no two neighbours share an address, unless only weights change."""


def size(number: int) -> int:
    """Return how many servers a set has: every tenth has many."""
    return LARGE if number % 10 == 5 else SMALL


def set_of(number: int) -> int:
    """Return the set that is published under a number; every fourth only changes the weights of its predecessor."""
    position = number % CYCLE
    return position - 1 if position % 4 == 3 else position


def address(family: int, number: int, index: int) -> Address:
    """Return the address of a set's server: set and index are its last bytes."""
    high, low = divmod(index, 250)
    if family == 4:
        return parse_address(f"127.{number + 1}.{high}.{low + 1}")
    return parse_address(f"{IPV6_REALS}{number + 1:x}:{index + 1:x}")


def decode(reached: bytes) -> tuple[int, int]:
    """Return set and index of the server that a client reached."""
    if reached.startswith(bytes(10) + b"\xff\xff"):
        return reached[13] - 1, reached[14] * 250 + reached[15] - 1
    return int.from_bytes(reached[12:14], "big") - 1, int.from_bytes(reached[14:16], "big") - 1


def pool(family: int, number: int, port: int) -> Pool:
    """Return the pool that is published under a number."""
    own = set_of(number)
    reweighed = own != number % CYCLE
    servers = (
        RealServer(0, address(family, own, index), port, 1 + (index * 7 + reweighed) % 5) for index in range(size(own))
    )
    return tuple(sorted(servers))


def main(instance: str, port: int, log: str, first: int) -> None:
    """Publish until killed."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, number: int) -> None:
        os.write(output, f"{event} {number} {time.monotonic_ns()}\n".encode())

    vips = {4: Vip(parse_address(VIP4), port, Protocol.TCP), 6: Vip(parse_address(VIP6), port, Protocol.TCP)}
    with Instance(instance).locked(), Maps(Pins(instance)) as maps:
        installed, number = maps.read(), first
        while True:
            desired = {
                vip: VirtualServer(vip, "swap", "test", Algorithm.RANDOM, pool(family, number, port))
                for family, vip in vips.items()
            }
            wanted = plan(installed, own_servers.virtual_servers(instance) | desired, complete=True)
            note("begin", number)
            for step in wanted.steps:
                maps.carry_out(step)
                if isinstance(step, Store):
                    note("swap", number)
            installed, number = wanted.result, number + 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
