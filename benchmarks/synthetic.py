"""The real sidecar with an internal discovery.

Usage: python -m benchmarks.synthetic VIRTUAL REAL PARTS INSTANCE CGROUP. The costs of Consul or DNS are not included.
Each service has REAL real servers in PARTS parts of equal size. Each line on standard input is a command: after
`change NUMBER` the source of the first part of this service answers again, with its last real server replaced; `cpu`
prints the CPU time so far.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from clb_discovery import log
from clb_discovery.config.options import Options
from clb_discovery.config.settings import Settings
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import Protocol, RealServer, Vip
from clb_discovery.model.service import Part, RemovalPolicy, Service, pool_name
from clb_discovery.sidecar.daemon import Daemon
from clb_discovery.sources.base import Source

MAPPED = parse_address("0.0.0.0")[:12]
SHARES = (90, 10)
"""Of the first part, and of each other one."""


def address(number: int, first: int) -> Address:
    """Return the IPv4 address with this number in the network of this first byte."""
    return Address(MAPPED + bytes([first]) + number.to_bytes(3, "big"))


def vip(number: int) -> Vip:
    """Return the VIP of a service."""
    return Vip(address(number, 11), 80, Protocol.TCP)


class Synthetic:
    """A source that answers on command."""

    def __init__(self, number: int, part: int, real: int) -> None:
        self.name = f"synthetic:{number}.{part}"
        first = number % 64 * 10240 + part * real
        self._servers = [RealServer(0, address(first + one, 10), 8000, 1 + one % 5) for one in range(real)]
        self._changed = asyncio.Event()
        self._changed.set()

    async def next(self) -> Answer:
        """Wait for the next answer and return it."""
        await self._changed.wait()
        self._changed.clear()
        return Answer(tuple(self._servers))

    def hasten(self) -> None:
        """Repeat the last answer."""
        self._changed.set()

    def change(self) -> None:
        """Replace the last real server."""
        last = self._servers[-1]
        self._servers[-1] = last._replace(port=8000 + (last.port + 1) % 1000)
        self._changed.set()


def service_of(number: int, sources: Sequence[str]) -> Service:
    """Return the service whose parts have these sources; only several of them have shares."""
    several = len(sources) > 1
    parts = [
        Part(name, share=SHARES[min(place, 1)] if several else None) for place, name in enumerate(sources)
    ]  # as in a canary
    name = pool_name(parts)
    return Service(f"service-{number}", name, (vip(number),), policy=RemovalPolicy(hold=0.0), parts=tuple(parts))


async def main(virtual: int, real: int, parts: int, instance: str, cgroup: Path) -> None:
    """Run until SIGTERM."""
    log.configure("json", "warning")
    sources: dict[str, Source] = {}
    services = []
    for number in range(virtual):
        own = [Synthetic(number, part, real // parts) for part in range(parts)]
        sources |= {source.name: source for source in own}
        services.append(service_of(number, [source.name for source in own]))

    @asynccontextmanager
    async def opened() -> AsyncIterator[Mapping[str, Source]]:
        yield sources

    def obey() -> None:
        command, _, number = sys.stdin.readline().partition(" ")
        if command == "change":
            source = sources[f"synthetic:{int(number)}.0"]
            assert isinstance(source, Synthetic)
            source.change()
        elif command.strip() == "cpu":
            print(time.process_time(), flush=True)

    settings = Settings(Options(instance=instance, cgroup=str(cgroup)), services, opened)
    asyncio.get_running_loop().add_reader(sys.stdin, obey)
    print(time.process_time(), flush=True)
    await Daemon(settings, lambda: settings).run()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])))
