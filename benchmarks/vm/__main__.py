"""`make bench-vm`: compare ways to balance connections in machines whose clock counts instructions.

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
from pathlib import Path
from typing import Final

from benchmarks import results
from benchmarks.vm import figures
from benchmarks.vm.figures import CASES, DIRECT, NS_PER_INSTRUCTION, Sample
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
REPEATS: Final = 3
LIMIT: Final = 1800.0
CLOCK: Final = ("-icount", f"shift={NS_PER_INSTRUCTION.bit_length() - 1},sleep=off", "-rtc", "base=2024-01-01,clock=vm")
QUIET: Final = "clb_job=benchmarks/vm/job clocksource=tsc tsc=reliable"
"""The processor's own clock is read without leaving the machine, and counts the instructions."""


def say(text: str) -> None:
    """Print a line for people."""
    print(f"bench-vm: {text}", flush=True)


async def measure(case: str, repeat: int, job: Job, work: Path) -> Sample:
    """Boot a machine for a case, and return its results.

    :param repeat: machines of the same number have the same randomness.
    :raises VmError: if it has no results.
    """
    console, files = CACHE / f"{case}-{repeat}.log", work / f"{case}-{repeat}"
    files.mkdir()
    own = job._replace(
        append=f"{QUIET} clb_bench={case},{REQUESTS},{CONNECTS}",
        options=("-smp", "1", *CLOCK, "-seed", str(repeat)),
    )
    try:
        seconds = await machine.boot(Parts(CACHE / KERNEL.name), own, files, console)
        sample = figures.read_sample(machine.read_disk(machine.disk_of(files))["measured.json"])
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise VmError(f"{case} ended without results ({error}); its console: {console}") from error
    finally:
        shutil.rmtree(files)
    told = f"{sample.per_second:,.0f} requests a second, {sample.connect:,.0f} instructions a connect"
    say(f"{CASES[case]}, run {repeat}: {told}; {seconds:.0f} s")
    return sample


async def measure_all(cases: list[str], options: argparse.Namespace, work: Path) -> dict[str, list[Sample]]:
    """Boot all machines, as many at a time as there are processors: each uses one."""
    kernels.cached(KERNEL, CACHE, say, (*MODULES, *MORE_MODULES))
    recipe = Recipe(PACKAGES, tuple(root.requirements(CHECKOUT, "run")))
    job = Job(root.cached(recipe, CACHE, say), work / "stage", "", LIMIT)
    machine.install(CHECKOUT, machine.build_wheel(work / "dist"), job.stage, ("tests", "benchmarks"))
    flags = ("-O2", "-Wall", "-Werror", "-static")
    run(["clang", *flags, "-o", job.stage / "connects", CHECKOUT / "benchmarks" / "connects.c"])
    room = asyncio.Semaphore(options.jobs)

    async def in_turn(case: str, repeat: int) -> Sample:
        async with room:
            return await measure(case, repeat, job, work)

    pairs = [(case, repeat) for repeat in range(1, options.repeats + 1) for case in cases]
    samples = await asyncio.gather(*(in_turn(*pair) for pair in pairs))
    return {case: [sample for pair, sample in zip(pairs, samples, strict=True) if pair[0] == case] for case in cases}


def main(options: argparse.Namespace, work: Path) -> int:
    """Measure, print the table, and return 1 if a result is not acceptable."""
    cases = [case for case in CASES if case == DIRECT or not options.only or case in options.only]
    found = figures.rows(asyncio.run(measure_all(cases, options, work)))
    version = Parts(CACHE / KERNEL.name).version
    print(f"Debian's {version}; {options.repeats} machines for each case, 1 instruction = {NS_PER_INSTRUCTION} ns")
    print(*figures.lines(found), sep="\n")
    wrong = list(figures.shortcomings(found))
    for line in wrong:
        say(line)
    if options.save:
        measured = {CASES[case]: row._asdict() for case, row in found.items()}
        results.save("vm", {"kernel": version, "repeats": options.repeats, "cases": measured})
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.vm", description=__doc__.split(":")[1].split("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="machines for each case (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="so many machines at a time")
    parser.add_argument("--only", choices=CASES, action="append", help="this case beside direct; repeatable")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    parsed = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench-vm: root is needed to make the root of the machines: run it as root or through sudo")
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="clb-discovery-bench.") as folder:
            sys.exit(main(parsed, Path(folder)))
    except VmError as error:
        sys.exit(f"bench-vm: {error}")
