"""The resources of one sidecar: `make bench-sidecar`.

With the real command and a real Consul agent, and with a real DNS server: seconds from its start until READY=1, and CPU
seconds until then; memory then and a minute later, and CPU time in that minute, in which nothing changes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from benchmarks import results
from benchmarks.process import cpu, memory
from clb_discovery.demo.private_network import enter_private_network
from tests.support.cgroups import made_cgroup
from tests.support.consul import ConsulAgent
from tests.support.dataplane import wipe
from tests.support.knot import KnotServer
from tests.support.sidecar import sidecar

SERVICES: Final = 100
SERVERS: Final = 10
STARTS: Final = 5
TTL: Final = 30


def vip(number: int) -> str:
    """Return the VIP of a service."""
    return f"10.64.{number >> 8}.{number & 255}:80"


@contextmanager
def consul(folder: Path) -> Iterator[list[str]]:
    """Run an agent with the services; yield the options that follow them."""
    with ConsulAgent(folder) as agent:
        for number in range(SERVICES):
            for server in range(SERVERS):
                found = {"Service": f"service-{number}", "ID": f"{number}-{server}", "Port": 8000 + number}
                agent.register_external(f"node-{server}", f"10.1.0.{server + 1}", found)
        named = [word for number in range(SERVICES) for word in ("--service", f"service-{number}={vip(number)}")]
        yield ["--consul", agent.url, *named]


@contextmanager
def dns(_: Path) -> Iterator[list[str]]:
    """Run a DNS server with the records of the services; yield the options that follow them."""
    records = [f"s{server} A 10.1.0.{server + 1}" for server in range(SERVERS)]
    records += [
        f"_s{number}._tcp SRV 0 1 {8000 + number} s{server}" for number in range(SERVICES) for server in range(SERVERS)
    ]
    with KnotServer() as knot:
        knot.write("\n".join(records), ttl=TTL, negative_ttl=TTL)
        named = [word for number in range(SERVICES) for word in ("--srv", f"_s{number}._tcp.example={vip(number)}")]
        yield ["--resolver", knot.address, *named]


def measure(options: list[str], folder: Path, idle: float) -> dict[str, float]:
    """Start it a few times, and let the last one run for a while."""
    instance = f"bench-{uuid4().hex[:8]}"
    ready: list[float] = []
    taken: list[float] = []
    with made_cgroup() as cgroup:
        try:
            for turn in range(STARTS):
                began = time.monotonic()
                with sidecar(instance, cgroup, folder, options, ready=False) as found:
                    found.wait_until_ready()
                    ready.append(time.monotonic() - began)
                    taken.append(cpu(found.process.pid))
                    if turn < STARTS - 1:
                        continue
                    pid = found.process.pid
                    time.sleep(5)  # work after readiness: the first check of links
                    rss, before, began = memory(pid, "VmRSS"), cpu(pid), time.monotonic()
                    time.sleep(idle)
                    used = (cpu(pid) - before) / (time.monotonic() - began)
                    return {
                        "first_ready_s": round(ready[0], 2),
                        "ready_s": round(statistics.median(ready), 2),
                        "ready_cpu_s": round(statistics.median(taken), 2),
                        "rss_mib": round(rss, 1),
                        "rss_mib_later": round(memory(pid, "VmRSS"), 1),
                        "idle_cpu_percent": round(used * 100, 2),
                    }
        finally:
            wipe(instance)
    raise AssertionError


def main() -> None:
    """Measure with either source."""
    parser = argparse.ArgumentParser(prog="sidecar", description=__doc__)
    parser.add_argument(
        "--idle", type=float, default=60.0, help="seconds to watch it doing nothing (default: %(default)s)"
    )
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    enter_private_network()
    measured = {}
    for name, source in (("consul", consul), ("dns", dns)):
        with tempfile.TemporaryDirectory() as folder, source(Path(folder)) as following:
            measured[name] = measure(following, Path(folder), options.idle)
        print(f"{name}, {SERVICES} services of {SERVERS} real servers: {measured[name]}", flush=True)
    if options.save:
        results.save("sidecar", measured)


if __name__ == "__main__":
    main()
