"""The job inside a machine: set one case up, measure it, and write the results.

Usage: python -m benchmarks.vm.guest CASE REQUESTS CONNECTS CLIENT-PROGRAM FILE. Everything is done once before it is
measured. Runs of programs are counted afterwards, because counting needs instructions itself.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.client import Client, client
from benchmarks.vm.figures import OURS
from benchmarks.vm.ways import INSTANCE, OWN_PORT, REDIS_PORT, WAYS, connect_place
from benchmarks.ways import in_namespace
from clb_discovery.datapath.pins import Pins
from tests.support import namespaces
from tests.support.process import running, wait_until
from tests.support.run_counts import counting_runs, run_counts

TESTS: Final = 2
"""The tests of redis-benchmark: PING_INLINE and PING_MBULK."""
COUNTED: Final = (1000, 3000)
"""Requests of each test, while runs of programs are counted."""
_SETTLING: Final = 3.0
"""Seconds for started processes to become idle; they pass at once on this clock."""


@contextmanager
def connecting(program: Path, servers: Path) -> Iterator[Client]:
    """Run a client outside of the namespace of the servers, with its listener inside."""
    listener = namespaces.inside(servers, lambda: socket.create_server(("0.0.0.0", OWN_PORT), backlog=4096))
    with listener, client(program, listener) as found:
        yield found


@contextmanager
def redis(servers: Path, folder: Path) -> Iterator[None]:
    """Run a Redis server at all addresses of the namespace of the servers."""
    command = ["redis-server", "--port", str(REDIS_PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]
    with running(in_namespace(servers, [*command, "--dir", folder]), folder / "redis.log"):
        asked = in_namespace(servers, ["redis-cli", "-p", str(REDIS_PORT), "ping"])
        wait_until(lambda: b"PONG" in subprocess.run(asked, check=False, capture_output=True).stdout, "Redis answers")
        yield


def ping(address: str, requests: int) -> str:
    """Let redis-benchmark send so many requests of each kind over 100 connections; return its output."""
    command = ["redis-benchmark", "-h", address, "-p", str(REDIS_PORT), "-c", "100", "-P", "1", "-t", "ping"]
    command += ["-n", str(requests), "--csv"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def counted_runs(address: str) -> list[tuple[int, int]]:
    """Return requests, and runs of programs meanwhile, for few and for many requests."""
    counts = []
    with counting_runs():
        for requests in COUNTED:
            before = sum(run_counts(Pins(INSTANCE)).values())
            ping(address, requests)
            counts.append((requests * TESTS, sum(run_counts(Pins(INSTANCE)).values()) - before))
    return counts


def modules() -> list[str]:
    """Return the modules in the kernel."""
    return [line.split()[0] for line in Path("/proc/modules").read_text(encoding="utf-8").splitlines()]


def programs() -> int:
    """Return the number of BPF programs in the kernel, by the names, with tags, of their JIT symbols."""
    return len(re.findall(r" bpf_prog_[0-9a-f]{16}\b", Path("/proc/kallsyms").read_text(encoding="utf-8")))


def main(case: str, requests: int, connects: int, program: Path) -> dict[str, object]:
    """Measure a case; return the results."""
    address, way = WAYS[case]
    folder = Path("/tmp")  # noqa: S108 - the machine's own, in memory
    with ExitStack() as stack:
        servers = stack.enter_context(namespaces.by_mount())
        connect_place(servers)
        stack.enter_context(redis(servers, folder))
        with way(folder):
            connects_only = stack.enter_context(connecting(program, servers))
            time.sleep(_SETTLING)
            ping(address, requests // 10)
            said = ping(address, requests)
            connects_only.connect(address, connects // 10)
            times = connects_only.connect(address, connects)
            found = {"modules": modules(), "programs": programs()}
        # The data plane stays without the sidecar, whose own connects would be counted.
        runs = counted_runs(address) if case == OURS else None
    return {"redis": said, "times": times, "runs": runs, **found}


if __name__ == "__main__":
    measured = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    Path(sys.argv[5]).write_text(json.dumps(measured), encoding="utf-8")
