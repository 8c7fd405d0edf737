"""The load of sidecars on a Consul cluster, and that of a large fleet: `make bench-consul`.

There is a real cluster of three servers, with client agents in front of it as on ordinary hosts. Behind those are more
and more sidecars: the real code of the sidecar that follows Consul, many in one process. All follow the same services,
so that one change is an answer to each of them. The cost of a change for the servers grows linearly with the number of
sidecars; the slope is the cost of an answer, and the intercept is the cost of the change itself. The same holds for
memory and watches.

From those costs, benchmarks/fleet.py computes the load of a fleet. Run as root, because everything is in a network
namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import results
from benchmarks.fleet import Costs, Fleet, load
from benchmarks.process import cpu
from clb_discovery import log
from clb_discovery.demo.private_network import enter_private_network
from clb_discovery.model.answer import Answer, Outcome
from clb_discovery.sources.consul.server import ConsulServer
from tests.support.consul import ConsulAgent, ConsulCluster
from tests.support.followed import followed

SIDECARS: Final = (0, 100, 200, 300)
SERVICES: Final = 10
"""The number of services that each of them follows."""
POOL: Final = 10
"""Real servers of each service."""
PORT: Final = 8000
"""The port of the real servers, until one of them changes to a higher one."""
CHANGES: Final = 20
IDLE: Final = 60.0
"""Seconds without a change: each watch is renewed about once."""
AGENTS: Final = 4
PATIENCE: Final = 60.0
DEBUG: Final = {"enable_debug": True}
UNLIMITED: Final = {"limits": {"http_max_conns_per_client": 10_000}}


class Cell(NamedTuple):
    """The cost of one number of sidecars for all servers together."""

    sidecars: int
    watches: int
    goroutines: int
    memory_mib: float
    """Live memory on the heap, and stacks."""
    idle_cpu_ms_a_second: float
    idle_answers_a_second: float
    change_cpu_ms: float
    change_kb: float
    """Between client agents and servers, both ways."""
    felt_ms: float
    """The median time of a change until the last sidecar has it."""
    felt_ms_worst: float


def slope(cells: Sequence[Cell], along: str, field: str) -> float:
    """Return the growth of a field with another one, by a linear fit through all cells."""
    line = statistics.linear_regression(
        [getattr(cell, along) for cell in cells], [getattr(cell, field) for cell in cells]
    )
    return line.slope


def costs_of(cells: Sequence[Cell]) -> Costs:
    """Return the costs of an answer and of a watch."""
    return Costs(
        answer_cpu_us=round(slope(cells, "sidecars", "change_cpu_ms") * 1000, 1),
        answer_kb=round(slope(cells, "sidecars", "change_kb"), 2),
        watch_kib=round(slope(cells, "watches", "memory_mib") * 1024, 1),
        watch_goroutines=round(slope(cells, "watches", "goroutines"), 2),
    )


def bytes_of(sockets: str, pids: Iterable[int], ports: Iterable[int]) -> int:
    """Return the bytes that these processes have sent to these ports and received from them, from `ss -HtinpO`."""
    ours, theirs = {f"pid={pid}," for pid in pids}, {str(port) for port in ports}
    total = 0
    for row in sockets.splitlines():
        peer = row.split()[4].rpartition(":")[2]
        if peer in theirs and any(pid in row for pid in ours):
            total += sum(map(int, re.findall(r"\bbytes_(?:sent|received):(\d+)", row)))
    return total


def live(heap: str) -> float:
    """Return the live memory of heap and stacks in MiB, from a server's /debug/pprof/heap."""
    allotted, stacks = (re.search(rf"^# {name} = (\d+)", heap, re.MULTILINE) for name in ("HeapAlloc", "Stack"))
    assert allotted
    assert stacks
    return (int(allotted[1]) + int(stacks[1])) / 2**20


def profile(server: ConsulAgent, name: str) -> str:
    """Return a profile of a server."""
    with urllib.request.urlopen(f"{server.url}/debug/pprof/{name}", timeout=PATIENCE) as answer:  # noqa: S310  # ours
        return str(answer.read(), "utf-8")


class Cluster:
    """The servers and the agents in front of them."""

    def __init__(self, servers: Sequence[ConsulAgent], agents: Sequence[ConsulAgent]) -> None:
        self._servers = servers
        self.agents = agents
        self._ports = [server.request("GET", "/v1/agent/self")["DebugConfig"]["ServerPort"] for server in servers]

    def cpu(self) -> float:
        """Return the CPU seconds of the servers."""
        return sum(cpu(server.pid) for server in self._servers)

    def bytes(self) -> int:
        """Return the bytes between agents and servers."""
        rows = subprocess.run(["ss", "-HtinpO"], check=True, capture_output=True, text=True).stdout
        return bytes_of(rows, [agent.pid for agent in self.agents], self._ports)

    def goroutines(self) -> int:
        """Return the number of goroutines in the servers."""
        heads = [profile(server, "goroutine?debug=1").split("\n", 1)[0] for server in self._servers]
        return sum(int(head.rsplit(" ", 1)[1]) for head in heads)

    def memory(self) -> float:
        """Return the memory of the servers after a garbage collection, in MiB."""
        return sum(live(profile(server, "heap?debug=1&gc=1")) for server in self._servers)

    def register(self, service: int, number: int, port: int) -> None:
        """Register a real server of a service at this port."""
        found = {"Service": f"service-{service}", "ID": f"{service}-{number}", "Port": port}
        self._servers[0].register_external(f"node-{number}", f"10.1.0.{number + 1}", found)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run them while the block runs."""
    with ExitStack() as stack:
        servers = stack.enter_context(ConsulCluster(folder, DEBUG))
        agents = []
        for number in range(AGENTS):
            home = folder / f"agent-{number}"
            home.mkdir()
            agents.append(stack.enter_context(servers.client(home, f"agent-{number}", UNLIMITED)))
        found = Cluster(servers.servers, agents)
        for service in range(SERVICES):
            for number in range(POOL):
                found.register(service, number, PORT)
        yield found


class Fans:
    """The sidecars, and their answers."""

    def __init__(self) -> None:
        self.ports: dict[tuple[int, str], int] = {}
        """The highest port of a pool, by sidecar and service."""
        self.answers = 0

    def heard(self, number: int, service: str, outcome: Outcome) -> None:
        """Record the outcome of a source."""
        assert isinstance(outcome, Answer), outcome
        self.answers += 1
        self.ports[number, service] = max(server.port for server in outcome.servers)

    async def until(self, count: int, service: str, port: int) -> None:
        """Wait until so many sidecars have seen this port."""
        deadline = time.monotonic() + PATIENCE
        while sum(self.ports.get((number, service)) == port for number in range(count)) < count:
            assert time.monotonic() < deadline, f"some have not seen {service} at {port}"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def fan(number: int, agent: ConsulAgent, fans: Fans) -> AsyncIterator[None]:
    """Follow all services as one sidecar does."""
    names = [f"service-{service}" for service in range(SERVICES)]
    async with followed(ConsulServer(agent.url), names, lambda name, found: fans.heard(number, name, found)):
        yield


async def measure(where: Cluster, fans: Fans, sidecars: int, idle: float, first_port: int) -> Cell:
    """Measure with the current sidecars."""
    goroutines, memory = await asyncio.to_thread(where.goroutines), await asyncio.to_thread(where.memory)
    began, answers, taken = time.monotonic(), fans.answers, where.cpu()
    await asyncio.sleep(idle)
    seconds = time.monotonic() - began
    idle_cpu, idle_answers = (where.cpu() - taken) / seconds, (fans.answers - answers) / seconds
    changes: list[tuple[float, float, float]] = []
    for turn in range(CHANGES):
        service, port = turn % SERVICES, first_port + turn
        began, taken, sent = time.monotonic(), where.cpu(), where.bytes()
        await asyncio.to_thread(where.register, service, 0, port)
        called = time.monotonic()
        await fans.until(sidecars, f"service-{service}", port)
        felt = time.monotonic() - called
        await asyncio.sleep(1)  # all renew their watches
        spent = where.cpu() - taken - idle_cpu * (time.monotonic() - began)
        changes.append((felt * 1000, spent * 1000, (where.bytes() - sent) / 1000))
    felts, cpus, kilobytes = zip(*changes, strict=True)
    return Cell(
        sidecars,
        sidecars * SERVICES,
        goroutines,
        round(memory, 1),
        round(idle_cpu * 1000, 1),
        round(idle_answers, 1),
        round(statistics.mean(cpus), 2),  # a tick is 10 ms, so only the sum over all changes is meaningful
        round(statistics.mean(kilobytes), 1),
        round(statistics.median(felts), 1),
        round(max(felts), 1),
    )


async def measure_all(where: Cluster, sizes: Sequence[int], idle: float) -> list[Cell]:
    """Start more and more sidecars."""
    fans, cells, there = Fans(), [], 0
    async with AsyncExitStack() as stack:
        for turn, sidecars in enumerate(sizes):
            for number in range(there, sidecars):
                await stack.enter_async_context(fan(number, where.agents[number % AGENTS], fans))
                if number % 10 == 0:
                    await asyncio.sleep(0.1)
            there = sidecars
            deadline = time.monotonic() + PATIENCE
            while len(fans.ports) < sidecars * SERVICES:
                assert time.monotonic() < deadline, "not all are answered"
                await asyncio.sleep(0.1)
            await asyncio.sleep(3)
            cells.append(await measure(where, fans, sidecars, idle, 9000 + 100 * turn))
            print(cells[-1], flush=True)
    return cells


def main() -> None:
    """Measure, and print the load of fleets."""
    parser = argparse.ArgumentParser(prog="consul_load", description=__doc__)
    parser.add_argument("--sidecars", help="such as 0,100,200: how many at a time")
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds without a change (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    log.configure("json", "warning")
    sizes = [int(size) for size in options.sidecars.split(",")] if options.sidecars else SIDECARS
    enter_private_network()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as where:
        cells = asyncio.run(measure_all(where, sizes, options.idle))
    costs = costs_of(cells)
    print(costs)
    fleets = [load(costs, Fleet(hosts)) for hosts in (1_000, 10_000, 100_000)]
    print(*fleets, sep="\n")
    if options.save:
        measured = {"cells": [cell._asdict() for cell in cells], "costs": costs._asdict(), "fleets": fleets}
        results.save("consul_load", measured)


if __name__ == "__main__":
    main()
