"""The cost of the programs: nanoseconds of all hooks for a TCP connect, from connect to close.

The kernel's own statistics (kernel.bpf_stats_enabled) have the time of every program, including the reading of the
clock. The time of empty programs on the same hooks for the same connects is subtracted: the mean of one that runs
before ours, which finds caches cold, and one that runs after. The cost of an empty program shows how fast the machine
is: 25 ns where the design's limits were set. The client is a loop in C. Cases are interleaved; the output has medians
of the rounds, and quartiles of the sum. Run as root: make bench-hooks
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.client import SOURCE, client
from benchmarks.process import compiled
from benchmarks.programs import empty_programs
from clb_discovery.datapath import bpf
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.demo.private_network import enter_private_network
from clb_discovery.model import own_servers
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Protocol, RealServer, Vip, VirtualServer
from clb_discovery.publication.plan import plan
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe

INSTANCE: Final = "bench-hooks"
CONNECTS: Final = 100
ROUNDS: Final = 200
STATS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")
LEAN: Final = PassiveHealth(active=False, eject_after=0, connect_timeout_ms=0)

CASES: Final[dict[str, tuple[str, Algorithm, PassiveHealth]]] = {
    "elsewhere": ("127.0.0.1", Algorithm.RANDOM, PassiveHealth()),
    "random, lean": ("10.64.0.1", Algorithm.RANDOM, LEAN),
    "random": ("10.64.0.2", Algorithm.RANDOM, PassiveHealth()),
    "round-robin": ("10.64.0.3", Algorithm.ROUND_ROBIN, PassiveHealth()),
    "least-conn": ("10.64.0.4", Algorithm.LEAST_CONN, PassiveHealth()),
}


def publish(pins: Pins, port: int) -> None:
    """Publish a virtual server of ten real servers for each case; all of them are the same listener."""
    pool = tuple(RealServer(0, parse_address(f"127.0.0.{number}"), port, number) for number in range(1, 11))
    desired = own_servers.virtual_servers(pins.instance)
    for address, algorithm, health in CASES.values():
        vip = Vip(parse_address(address), port, Protocol.TCP)
        if not address.startswith("127."):
            desired[vip] = VirtualServer(vip, "bench", "bench", algorithm, pool, health)
    with Maps(pins) as maps:
        maps.apply(plan(maps.read(), desired, complete=True).steps)


def times(programs: Collection[int]) -> list[int]:
    """Return the run time of each program in nanoseconds."""
    return [bpf.program_time(program) for program in programs]


def table(results: dict[str, list[list[float]]]) -> Iterator[str]:
    """Yield the lines of a table: for each case the median of every hook with a cost, and of the sum."""
    medians = {
        case: [statistics.median(hook) for hook in zip(*rounds, strict=True)] for case, rounds in results.items()
    }
    shown = [hook for hook in range(len(PROGRAMS)) if any(abs(median[hook]) >= 1 for median in medians.values())]
    names = [list(PROGRAMS)[hook].removeprefix("clb_") for hook in shown]
    yield f"{'case':<14}" + "".join(f"{name:>14}" for name in [*names, "sum"]) + "     quartiles"
    for case, rounds in results.items():
        low, median, high = statistics.quantiles(map(sum, rounds), n=4)
        columns = [*(medians[case][hook] for hook in shown), median]
        yield f"{case:<14}" + "".join(f"{column:>14.0f}" for column in columns) + f"{low:>7.0f}{high:>7.0f}"


def main() -> None:
    """Measure all cases, interleaved."""
    enter_private_network()
    pins = Pins(INSTANCE)
    results: dict[str, list[list[float]]] = {name: [] for name in CASES}
    single: list[float] = []
    stats = STATS.read_text()
    with ExitStack() as stack:
        cgroup = stack.enter_context(made_cgroup())
        stack.enter_context(Instance(INSTANCE).locked())
        stack.callback(wipe, INSTANCE)
        first = stack.enter_context(empty_programs(cgroup, *PROGRAMS)).values()
        loader.load(pins, cgroup)
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=4096))
        port = listener.getsockname()[1]
        publish(pins, port)
        ours = [bpf.open_pin(pins.program(name)) for name in PROGRAMS]
        last = stack.enter_context(empty_programs(cgroup, *PROGRAMS)).values()
        program = compiled(SOURCE, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        connecting = stack.enter_context(client(program, listener, cgroup))
        STATS.write_text("1")
        stack.callback(STATS.write_text, stats)
        for _ in range(ROUNDS):
            for name, (address, _, _) in CASES.items():
                before = [times(programs) for programs in (first, ours, last)]
                connecting.connect(address, CONNECTS)
                after = [times(programs) for programs in (first, ours, last)]
                cold, own, warm = (
                    [(end - start) / CONNECTS for start, end in zip(*pair, strict=True)]
                    for pair in zip(before, after, strict=True)
                )
                net = [mine - (one + other) / 2 for mine, one, other in zip(own, cold, warm, strict=True)]
                results[name].append(net)
                single.append((cold[0] + warm[0]) / 2)  # connect4 runs once
    print(f"kernel {os.uname().release}; an empty program takes {statistics.median(single):.0f} ns a run")
    print(f"net ns a connect, {ROUNDS} rounds of {CONNECTS}")
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
