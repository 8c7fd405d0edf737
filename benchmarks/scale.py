"""The growth of the sidecar with the number of virtual and real servers: `make bench-scale`.

For each size: CPU time until everything is in the kernel for the first time; the latency from discovery's answer to the
kernel for a change of one real server of one service, and its CPU time; CPU time without changes; memory of the sidecar
and of the maps. The sidecar is the real one, with an internal discovery that answers at once (benchmarks/synthetic.py).
Run as root: python -m benchmarks.scale [--sizes 1x1,100x10,100x10/2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from benchmarks import results
from benchmarks.process import memory
from benchmarks.synthetic import vip
from clb_discovery.datapath.pins import Pins
from clb_discovery.demo.private_network import enter_private_network
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import memory_of_maps, wipe
from tests.support.systemd import ServiceManager, service_manager
from tests.support.virtual import generation_of

SIZES: Final = "1x1,1x100,1x1000,1x10000,100x10,1000x10,10000x1,10000x10,10000x10/2"
CHANGES: Final = 20
PAUSE: Final = 0.3
"""Seconds between two changes, so that none is in the burst of another."""
GIVEN_UP: Final = 60.0
IDLE: Final = 10.0


class Size(NamedTuple):
    """A number of services."""

    virtual: int
    real: int
    """Real servers of each."""
    parts: int
    """Parts of each, all with equally many real servers."""

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read a size such as 100x10, or 100x10/2 for two parts."""
        virtual, _, rest = text.partition("x")
        real, _, parts = rest.partition("/")
        return cls(int(virtual), int(real), int(parts or 1))


class Cell(NamedTuple):
    """The costs of one size."""

    virtual: int
    real: int
    parts: int
    sync_cpu_s: float
    sync_s: float
    change_ms: float
    change_ms_most: float
    change_cpu_ms: float
    idle_cpu_percent: float
    rss_mib: float
    peak_mib: float
    maps_mib: float


class Sidecar:
    """The child process."""

    def __init__(self, process: subprocess.Popen[str], manager: ServiceManager, instance: str) -> None:
        self._process = process
        self._manager = manager
        self._pins = Pins(instance)

    def cpu(self) -> float:
        """Return its CPU seconds."""
        self.tell("cpu")
        return self.read()

    def tell(self, command: str) -> None:
        """Send it a command."""
        assert self._process.stdin
        print(command, file=self._process.stdin, flush=True)

    def read(self) -> float:
        """Return the number that it prints."""
        assert self._process.stdout
        return float(self._process.stdout.readline())

    def wait_until_ready(self) -> None:
        """Wait until everything is in the kernel."""
        self._manager.until("READY=1")

    def memory(self, what: str) -> float:
        """Return its current memory (`VmRSS`), or the maximum so far (`VmHWM`), in MiB."""
        return memory(self._process.pid, what)

    def maps(self) -> float:
        """Return the memory of the maps, in MiB."""
        return memory_of_maps(self._pins) / 2**20

    def change(self, number: int) -> float:
        """Change a service; return after how many milliseconds the change is in the kernel."""
        with generation_of(self._pins, vip(number)) as generation:
            before = generation()
            began = time.monotonic()
            self.tell(f"change {number}")
            while generation() == before and time.monotonic() < began + GIVEN_UP:
                time.sleep(0.0005)
            return (time.monotonic() - began) * 1000


@contextmanager
def sidecar(size: Size, folder: Path) -> Iterator[Sidecar]:
    """Run one of this size while the block runs."""
    instance = f"bench-{uuid4().hex[:8]}"
    with made_cgroup() as cgroup, service_manager(folder) as manager:
        command = [sys.executable, "-m", "benchmarks.synthetic", *map(str, size), instance, str(cgroup)]
        environment = {**os.environ, "NOTIFY_SOCKET": manager.address}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                yield Sidecar(process, manager, instance)
            finally:
                process.terminate()
                process.wait()
                wipe(instance)


def measure(size: Size, folder: Path, *, idle: float) -> Cell:
    """Measure one size."""
    with sidecar(size, folder) as child:
        before, began = child.read(), time.monotonic()
        child.wait_until_ready()
        sync = time.monotonic() - began
        synced = child.cpu()
        time.sleep(3)  # work after readiness: the disk, the first check of links
        quiet = child.cpu()
        time.sleep(idle)
        busy = child.cpu()
        latencies = []
        for turn in range(CHANGES):
            time.sleep(PAUSE)
            latencies.append(child.change(turn * 997 % size.virtual))
        time.sleep(PAUSE)
        changed = child.cpu() - busy - (busy - quiet) / idle * PAUSE * (CHANGES + 1)
        return Cell(
            *size,
            round(synced - before, 3),
            round(sync, 3),
            round(statistics.median(latencies), 1),
            round(max(latencies), 1),
            round(max(0.0, changed) / CHANGES * 1000, 1),
            round((busy - quiet) / idle * 100, 2),
            round(child.memory("VmRSS"), 1),
            round(child.memory("VmHWM"), 1),
            round(child.maps(), 1),
        )


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the lines of a table."""
    heads = (
        "virtual",
        "real",
        "parts",
        "sync CPU s",
        "sync s",
        "change ms",
        "most",
        "its CPU ms",
        "idle %",
        "RSS MiB",
        "peak",
        "maps MiB",
    )
    yield "".join(f"{head:>11}" for head in heads)
    for cell in cells:
        yield "".join(f"{value:>11}" for value in cell)


def growth(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the growth of costs: a linear fit over the real servers of all pools together."""
    whole = [cell for cell in cells if cell.parts == 1]
    if len(whole) < 3:
        return
    slots = [cell.virtual * cell.real + cell.virtual for cell in whole]
    for what, scale, unit in (("sync_cpu_s", 1e6, "us"), ("rss_mib", 1024, "KiB")):
        line = statistics.linear_regression(slots, [getattr(cell, what) for cell in whole])
        yield f"{what}: {line.intercept:.3g} + {line.slope * scale:.3g} {unit} for each real or virtual server"


def parts(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the costs of services of several parts, as multiples of those of the same servers in one part."""
    for cell in cells:
        for plain in cells:
            if cell.parts > plain.parts == 1 and (cell.virtual, cell.real) == (plain.virtual, plain.real):
                costs = ("sync_cpu_s", "change_ms", "change_cpu_ms", "idle_cpu_percent", "peak_mib", "maps_mib")
                ratios = (f"{what} {getattr(cell, what) / getattr(plain, what):.2f}" for what in costs)
                yield f"{cell.parts} parts to one: {', '.join(ratios)}"


def main() -> None:
    """Measure all sizes, one after the other."""
    parser = argparse.ArgumentParser(prog="scale", description=__doc__)
    parser.add_argument(
        "--sizes",
        default=SIZES,
        help="virtual servers, real servers of each, and in how many parts (default: %(default)s)",
    )
    parser.add_argument(
        "--idle", type=float, default=IDLE, help="seconds to watch it doing nothing (default: %(default)s)"
    )
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    sizes = [Size.parse(size) for size in options.sizes.split(",")]
    enter_private_network()
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            cells.append(measure(size, Path(folder), idle=options.idle))
            print(*table(cells) if len(cells) == 1 else list(table(cells))[-1:], sep="\n", flush=True)
    print(*growth(cells), *parts(cells), sep="\n")
    if options.save:
        results.save("scale", [cell._asdict() for cell in cells])


if __name__ == "__main__":
    main()
