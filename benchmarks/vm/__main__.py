"""`make bench-vm`: count instructions of connections and of ways to balance them, in emulated machines.

Usage: python -m benchmarks.vm [-h] [--repeats N] [--jobs N] [--only CASE] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from benchmarks import results
from benchmarks.client import SOURCE
from benchmarks.vm import figures, goals, instructions
from benchmarks.vm.figures import CASES, DIRECT, NS_PER_INSTRUCTION
from tests.support.ending import ended_by_signals
from tests.vm import kernels, machine, root
from tests.vm.debian import run
from tests.vm.errors import VmError
from tests.vm.kernels import KERNELS, MODULES, Parts
from tests.vm.machine import Job
from tests.vm.root import Recipe

CHECKOUT: Final = Path(__file__).parents[2]
CACHE: Final = CHECKOUT / ".cache" / "bench-vm"
KERNEL: Final = next(kernel for kernel in KERNELS if kernel.name == "6.1")
MORE_MODULES: Final = (
    *("veth", "ip_vs", "ip_vs_rr"),
    *("nf_tables", "nft_compat", "nft_chain_nat", "xt_nat", "xt_statistic", "xt_tcpudp"),
)
PACKAGES: Final = (
    *("python3", "libbpf1", "iproute2", "kmod"),
    *("redis-server", "redis-tools", "ipvsadm", "iptables"),
)
REQUESTS: Final = 50_000
"""Number for each test of redis-benchmark."""
CONNECTS: Final = 5_000
CONNECTIONS: Final = "connections"
"""The machines that measure connections at the client's end."""
CONNECTS_AT_CLIENT: Final = 200
"""Of a batch: few enough for free ports in spite of TIME_WAIT."""
REPEATS: Final = 3
LIMIT: Final = 1800.0
CLOCK: Final = ("-icount", f"shift={NS_PER_INSTRUCTION.bit_length() - 1},sleep=off", "-rtc", "base=2024-01-01,clock=vm")
QUIET: Final = "clb_job=benchmarks/vm/job clocksource=tsc tsc=reliable"
"""The processor's own clock is read without leaving the machine, and counts the instructions."""

_T = TypeVar("_T")


def say(text: str) -> None:
    """Print a line for people."""
    print(f"bench-vm: {text}", flush=True)


class Machines:
    """The machines of a run, as many at a time as there are processors: each uses one."""

    def __init__(self, job: Job, work: Path, at_a_time: int) -> None:
        self._job = job
        self._work = work
        self._room = asyncio.Semaphore(at_a_time)

    async def measure(self, name: str, repeat: int, task: str, read: Callable[[bytes], _T]) -> _T:
        """Boot a machine, and return its results.

        :param repeat: machines of the same number have the same randomness.
        :param task: for `benchmarks/vm/job`.
        :raises VmError: if it has no results.
        """
        async with self._room:
            console, files = CACHE / f"{name}-{repeat}.log", self._work / f"{name}-{repeat}"
            files.mkdir()
            own = self._job._replace(
                append=f"{QUIET} clb_bench={task}", options=("-smp", "1", *CLOCK, "-seed", str(repeat))
            )
            try:
                seconds = await machine.boot(Parts(CACHE / KERNEL.name), own, files, console)
                sample = read(machine.read_disk(machine.disk_of(files))["measured.json"])
            except (tarfile.TarError, KeyError, ValueError) as error:
                raise VmError(f"{name} ended without results ({error}); its console: {console}") from error
            finally:
                shutil.rmtree(files)
        say(f"{name}, run {repeat}: {seconds:.0f} s")
        return sample

    async def measure_ways(self, cases: Sequence[str], repeats: int) -> dict[str, list[figures.Sample]]:
        """Measure ways to balance."""
        pairs = [(case, repeat) for repeat in range(1, repeats + 1) for case in cases]
        samples = await asyncio.gather(
            *(
                self.measure(case, repeat, f"guest,{case},{REQUESTS},{CONNECTS}", figures.read_sample)
                for case, repeat in pairs
            )
        )
        return {case: [one for pair, one in zip(pairs, samples, strict=True) if pair[0] == case] for case in cases}

    async def measure_connections(self, repeats: int) -> list[instructions.Sample]:
        """Measure connections at the client's end."""
        task = f"{CONNECTIONS},{CONNECTS_AT_CLIENT}"
        return await asyncio.gather(
            *(self.measure(CONNECTIONS, number, task, instructions.read_sample) for number in range(1, repeats + 1))
        )


def prepare(work: Path) -> Job:
    """Make all that the machines need.

    :raises VmError: if something cannot be made or fetched.
    """
    kernels.cached(KERNEL, CACHE, say, (*MODULES, *MORE_MODULES))
    recipe = Recipe(PACKAGES, tuple(root.requirements(CHECKOUT, "run")))
    job = Job(root.cached(recipe, CACHE, say), work / "stage", "", LIMIT)
    machine.install(CHECKOUT, machine.build_wheel(work / "dist"), job.stage, ("tests", "benchmarks"))
    flags = ("-O2", "-Wall", "-Werror", "-static")
    run(["clang", *flags, "-o", job.stage / "connects", SOURCE])
    return job


def versions() -> tuple[str, str]:
    """Return the versions of the kernel's package and of the compiler: others take other numbers of instructions."""
    return Parts(CACHE / KERNEL.name).version, run(["clang", "--version"]).splitlines()[0]


def report_ways(samples: Mapping[str, Sequence[figures.Sample]], repeats: int, *, save: bool) -> list[str]:
    """Print the table of ways to balance; return what is not acceptable."""
    found = figures.rows(samples)
    print(*figures.lines(found), sep="\n")
    if save:
        kernel, compiler = versions()
        measured = {CASES[case]: row._asdict() for case, row in found.items()}
        results.save("vm", {"kernel": kernel, "compiler": compiler, "repeats": repeats, "cases": measured})
    return list(figures.shortcomings(found))


def report_connections(samples: Sequence[instructions.Sample], *, save: bool) -> list[str]:
    """Print the tables of connections; return what is not acceptable, and which goals are missed."""
    found = instructions.rows(samples)
    document = instructions.document(found, instructions.direct(samples))
    print(*instructions.lines(document["rows"]), sep="\n")
    if save:
        kernel, compiler = versions()
        results.save("instructions", {"kernel": kernel, "compiler": compiler, "repeats": len(samples), **document})
    missed = list(goals.missed({name: row.more for name, row in found.items()}))
    if missed and versions() != goals.MEASURED_WITH:
        missed.append(f"the goals were set with {' and '.join(goals.MEASURED_WITH)}, so compare both")
    return [*instructions.shortcomings(found), *missed]


async def measure_all(
    options: argparse.Namespace, work: Path
) -> tuple[dict[str, list[figures.Sample]], list[instructions.Sample]]:
    """Boot all machines."""
    chosen = options.only or [*CASES, CONNECTIONS]
    cases = [case for case in CASES if case in chosen or (case == DIRECT and set(chosen) & CASES.keys())]
    machines = Machines(prepare(work), work, options.jobs)
    return await asyncio.gather(
        machines.measure_ways(cases, options.repeats),
        machines.measure_connections(options.repeats if CONNECTIONS in chosen else 0),
    )


def main(options: argparse.Namespace, work: Path) -> int:
    """Measure, print the tables, and return 1 if a result is not acceptable or a goal is missed."""
    ways, connections = asyncio.run(measure_all(options, work))
    kernel, compiler = versions()
    machines = f"{options.repeats} machines for each case, 1 instruction = {NS_PER_INSTRUCTION} ns"
    print(f"Debian's {kernel}, programs by {compiler}; {machines}")
    wrong = []
    if ways:
        wrong += report_ways(ways, options.repeats, save=options.save)
    if connections:
        wrong += report_connections(connections, save=options.save)
    for line in wrong:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.vm", description=__doc__.split(":")[1].split("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="machines for each case (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="so many machines at a time")
    parser.add_argument(
        "--only", choices=[*CASES, CONNECTIONS], action="append", help="this case beside direct; repeatable"
    )
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    parsed = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench-vm: root is needed to make the root of the machines: run it as root or through sudo")
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="clb-discovery-bench.") as folder:
            sys.exit(main(parsed, Path(folder)))
    except VmError as error:
        sys.exit(f"bench-vm: {error}")
