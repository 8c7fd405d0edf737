"""What the programs cost: nanoseconds of all hooks for a TCP connect, from connect to close.

The kernel's own statistics (kernel.bpf_stats_enabled) give the time of every program, the reading of their clock
included, so what empty programs on the same hooks took for the same connects is taken off. What one run of an empty
program costs tells how fast the machine is: 25 ns where the design's limits were set. Cases are interleaved, and the
median of the rounds is printed with its quartiles. Run as root: make bench-hooks
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from clb_discovery.core import selftest
from clb_discovery.core.address import parse_address
from clb_discovery.core.model import Algorithm, Protocol, RealServer, Tracking, Vip, VirtualServer
from clb_discovery.core.plan import plan
from clb_discovery.datapath import bpf, loader, probe
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.netns import enter_private_network
from clb_discovery.runtime import Instance
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe

INSTANCE: Final = "bench-hooks"
CONNECTS: Final = 100
ROUNDS: Final = 200
STATS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")
LINGER: Final = struct.pack("ii", 1, 0)
LEAN: Final = Tracking(active=False, eject_after=0)

CASES: Final[dict[str, tuple[str, Algorithm, Tracking]]] = {
    "elsewhere": ("127.0.0.1", Algorithm.RANDOM, Tracking()),
    "random, lean": ("10.64.0.1", Algorithm.RANDOM, LEAN),
    "random": ("10.64.0.2", Algorithm.RANDOM, Tracking()),
    "round-robin": ("10.64.0.3", Algorithm.ROUND_ROBIN, Tracking()),
    "least-conn": ("10.64.0.4", Algorithm.LEAST_CONN, Tracking()),
}


def publish(pins: Pins, port: int) -> None:
    """Publish a virtual server of ten real servers for each case; all of them are one listener."""
    pool = tuple(RealServer(0, parse_address(f"127.0.0.{number}"), port, number) for number in range(1, 11))
    desired = selftest.virtual_servers(pins.instance)
    for address, algorithm, tracking in CASES.values():
        vip = Vip(parse_address(address), port, Protocol.TCP)
        if not address.startswith("127."):
            desired[vip] = VirtualServer(vip, "bench", "bench", algorithm, pool, tracking)
    with Maps(pins) as maps:
        maps.apply(plan(maps.read(), desired, complete=True).steps)


@contextmanager
def empty_programs(cgroup: Path) -> Iterator[list[int]]:
    """Attach an empty program to every hook; yield their descriptors."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    programs = [bpf.load_program(probe.ALLOW, hook) for hook in PROGRAMS.values()]
    links = [
        bpf.link_create(program, directory, hook) for program, hook in zip(programs, PROGRAMS.values(), strict=True)
    ]
    try:
        yield programs
    finally:
        for fd in (*links, *programs, directory):
            os.close(fd)


def connect(listener: socket.socket, address: str, port: int) -> None:
    """Connect, accept, and close both ends."""
    for _ in range(CONNECTS):
        with socket.create_connection((address, port)) as client:
            listener.accept()[0].close()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


def times(programs: list[int]) -> list[int]:
    """Return the nanoseconds that each program has run for."""
    return [bpf.program_time(program) for program in programs]


def main() -> None:
    """Measure all cases, interleaved."""
    enter_private_network()
    pins = Pins(INSTANCE)
    results: dict[str, list[float]] = {name: [] for name in CASES}
    single: list[float] = []
    stats = STATS.read_text()
    with ExitStack() as stack:
        cgroup = stack.enter_context(made_cgroup())
        stack.enter_context(Instance(INSTANCE).held())
        stack.callback(wipe, INSTANCE)
        loader.load(pins, cgroup)
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=4096))
        port = listener.getsockname()[1]
        publish(pins, port)
        ours = [bpf.open_pin(pins.program(name)) for name in PROGRAMS]
        empty = stack.enter_context(empty_programs(cgroup))
        home = cgroup.parent / "cgroup.procs"
        stack.callback(home.write_text, str(os.getpid()))
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        STATS.write_text("1")
        stack.callback(STATS.write_text, stats)
        for _ in range(ROUNDS):
            for name, (address, _, _) in CASES.items():
                before, empty_before = times(ours), times(empty)
                connect(listener, address, port)
                single.append((times(empty)[0] - empty_before[0]) / CONNECTS)  # connect4, which runs once
                net = sum(times(ours)) - sum(before) - sum(times(empty)) + sum(empty_before)
                results[name].append(net / CONNECTS)
    print(f"kernel {os.uname().release}; an empty program takes {statistics.median(single):.0f} ns a run")
    print(f"{'case':<14}{'median':>8}{'quartiles':>14}   net ns a connect, {ROUNDS} rounds of {CONNECTS}")
    for name, values in results.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:<14}{median:>8.0f}{low:>7.0f}{high:>7.0f}")


if __name__ == "__main__":
    main()
