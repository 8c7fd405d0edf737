"""The cost of a request on established connections, compared with other ways to balance: `make bench`.

redis-benchmark keeps 100 connections open and sends one PING at a time on each, to a redis-server at ten addresses.
Ways take turns, in another order in each round. Ratios are those within one round, to a direct connection; the result
is their median, with quartiles. CPU time is that of the whole machine, from /proc/stat: of the client, the server, the
kernel, a proxy, and any other process.

The runs of our programs for a request are counted separately: by the kernel's own counts, with few and with many
requests on the same number of connections. The common part belongs to the connections. Run as root.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import results
from benchmarks.ways import AGAIN, DIRECT, HAPROXY, IPTABLES, NFTABLES, PORT, REAL, SHIPPED, Way, prepare
from clb_discovery.datapath.pins import Pins
from tests.support.run_counts import counting_runs, run_counts

INSTANCE: Final = "bench-established"
WAYS: Final = (DIRECT, AGAIN, SHIPPED, IPTABLES, NFTABLES, HAPROXY)
CONNECTIONS: Final = 100
REQUESTS: Final = 50_000
"""Number of each kind of PING in each round."""
ROUNDS: Final = 20
FEW: Final = 1_000
MANY: Final = 21_000
"""Requests of each kind for counting the runs of our programs."""
KINDS: Final = 2
"""PING as a line, and as all clients send it: redis-benchmark's test `ping` does both."""
AS_CLIENTS_DO: Final = "PING_MBULK"
SERVER: Final = (
    *("redis-server", "--bind", *REAL, "--port", str(PORT), "--protected-mode", "no"),
    *("--save", "", "--appendonly", "no"),
)


class Said(NamedTuple):
    """The output of redis-benchmark for one kind of request."""

    per_second: float
    p50_us: float
    p99_us: float


class Run(NamedTuple):
    """The results of one way in one round."""

    per_second: float
    """Requests of both kinds."""
    p50_us: float
    p99_us: float
    """Of requests in the form of clients."""
    cpu_us: float
    """CPU time of the whole machine for a request."""


def parse(text: str) -> dict[str, Said]:
    """Read the output of `redis-benchmark --csv`, by test."""
    return {
        row["test"]: Said(
            float(row["rps"]), round(float(row["p50_latency_ms"]) * 1000), round(float(row["p99_latency_ms"]) * 1000)
        )
        for row in csv.DictReader(text.splitlines())
    }


def together(said: Mapping[str, Said]) -> float:
    """Return the requests per second over consecutive tests with the same number of requests."""
    return statistics.harmonic_mean([kind.per_second for kind in said.values()])


def busy(text: str) -> int:
    """Return the busy ticks of all CPUs, from /proc/stat, without those that a hypervisor took."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, text.split("\n", 1)[0].split()[1:8])
    return user + nice + system + irq + softirq


def ask(way: Way, requests: int) -> dict[str, Said]:
    """Run redis-benchmark; it opens its connections once for each kind of request."""
    command = ["redis-benchmark", "-h", way.address, "-p", str(way.port), "-c", str(CONNECTIONS), "-P", "1"]
    command += ["-n", str(requests), "-t", "ping", "--csv"]
    done = subprocess.run(way.client(*command), check=True, capture_output=True, text=True)
    said = parse(done.stdout)
    assert len(said) == KINDS, done
    return said


def measure(way: Way, requests: int) -> Run:
    """Measure one round."""
    stat = Path("/proc/stat")
    before = busy(stat.read_text())
    said = ask(way, requests)
    seconds = (busy(stat.read_text()) - before) / os.sysconf("SC_CLK_TCK")
    client = said[AS_CLIENTS_DO]
    return Run(together(said), client.p50_us, client.p99_us, seconds / (KINDS * requests) * 1e6)


def runs(way: Way, requests: int) -> int:
    """Return the runs of our programs for these requests of each kind, connects included."""
    before = run_counts(Pins(INSTANCE))
    ask(way, requests)
    time.sleep(0.5)  # the last connection is closed by then
    after = run_counts(Pins(INSTANCE))
    return sum(after[name] - count for name, count in before.items())


def counted(way: Way) -> dict[str, float]:
    """Return the runs of our programs for a connection and for a request."""
    with counting_runs():
        few, many = runs(way, FEW), runs(way, MANY)
    return {
        "runs_a_connection": round(few / (KINDS * CONNECTIONS), 1),
        "runs_a_request": round((many - few) / (KINDS * (MANY - FEW)), 6),
    }


def summary(measured: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
    """Return the results by way."""
    direct = measured[DIRECT]
    found = {}
    for name, rounds in measured.items():
        pairs = list(zip(rounds, direct, strict=True))
        median = Run._make(map(statistics.median, zip(*rounds, strict=True)))
        found[name] = {
            "per_second": round(median.per_second),
            **results.ratio((one.per_second, other.per_second) for one, other in pairs),
            "p50_us": round(median.p50_us),
            "p99_us": round(median.p99_us),
            "cpu_us": round(median.cpu_us, 1),
            "cpu_to_direct": results.ratio((one.cpu_us, other.cpu_us) for one, other in pairs)["to_direct"],
        }
    return found


def main() -> None:
    """Measure all ways, interleaved."""
    parser = argparse.ArgumentParser(prog="established", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of either kind a round (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = {name: way for name, way in prepare(stack, folder, INSTANCE, SERVER).items() if name in WAYS}
        measured: dict[str, list[Run]] = {name: [] for name in ways}
        order = list(ways)
        for name in order:  # the first run includes one-time work
            ask(ways[name], FEW)
        for _ in range(options.rounds):
            random.shuffle(order)
            for name in order:
                measured[name].append(measure(ways[name], options.requests))
        found = summary(measured)
        found[SHIPPED] |= counted(ways[SHIPPED])
    print(*results.table(found), sep="\n")
    if options.save:
        results.save("established", found)


if __name__ == "__main__":
    main()
