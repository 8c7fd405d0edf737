"""`make test-kernels`: run the kernel tests on each kernel, compare, and write docs/kernels.md.

Usage: python -m tests.vm [-h] [--only KERNEL] [--jobs N] [--resume] [-- PYTEST-ARGUMENT...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.support.ending import ended_by_signals
from tests.vm import kernels, machine, root, table
from tests.vm.errors import VmError
from tests.vm.kernels import KERNELS, Kernel, Parts
from tests.vm.machine import Found, Job
from tests.vm.suite import LEFT_OUT, TESTED

CHECKOUT: Final = Path(__file__).parents[2]
CACHE: Final = CHECKOUT / ".cache" / "kernels"
DOCUMENT: Final = CHECKOUT / "docs" / "kernels.md"
LIMIT: Final = 5400.0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/test-kernels", description=__doc__.split(":")[1].split("\n")[0])
    names = [kernel.name for kernel in KERNELS]
    parser.add_argument("--only", choices=names, action="append", help="this kernel; repeatable; writes no document")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="so many machines at a time")
    parser.add_argument(
        "--resume", action="store_true", help="leave out kernels that have passed with the very same program and tests"
    )
    parser.add_argument("tests", nargs="*", help="arguments for pytest instead of the usual ones; writes no document")
    return parser.parse_args(arguments)


def surprises(kernel: Kernel, found: Found) -> list[str]:
    """Return all unexpected results.

    A test may be skipped only for a feature that the kernel is known to lack, with the reason `lacks FEATURE`.
    """
    lacking = {name for name, finding in found.features.items() if not finding.has}
    wrong = [f"lacks {name!r}: {found.features[name].detail}" for name in sorted(lacking - kernel.lacks)]
    wrong += [f"is said to lack {name!r}, and does not" for name in sorted(kernel.lacks - lacking)]
    wrong += [f"failed: {name}" for name in found.tests.failed]
    excused = {f"lacks {name}" for name in kernel.lacks}
    wrong += [f"skipped: {name}, {reason!r}" for name, reason in found.tests.skipped.items() if reason not in excused]
    return wrong if found.tests.passed or wrong else ["ran no test"]


def say(text: str) -> None:
    """Print a line for people."""
    print(f"test-kernels: {text}", flush=True)


async def run_tests(kernel: Kernel, job: Job, work: Path, passed: Path) -> Found | None:
    """Run one machine, and print its result; return its findings if they are as expected.

    :param passed: the directory that keeps its disk then.
    """
    console, files = CACHE / f"{kernel.name}.log", work / kernel.name
    files.mkdir()
    parts = Parts(CACHE / kernel.name)
    say(f"{kernel.name}: Debian's {parts.version} boots; its console is {console}")
    try:
        seconds = await machine.boot(parts, job, files, console)
        found = machine.read_found(machine.disk_of(files), console, seconds)
    except VmError as error:
        say(f"{kernel.name}: {error}")
        return None
    tests = found.tests
    counts = f"{tests.passed} passed, {len(tests.failed)} failed, {len(tests.skipped)} skipped"
    say(f"{kernel.name}: {counts} in {found.seconds:.0f} s")
    wrong = surprises(kernel, found)
    for line in wrong:
        say(f"{kernel.name}: {line}")
    if wrong:
        return None
    for old in passed.parent.glob(f"{kernel.name}-*.found"):
        old.unlink()
    shutil.move(machine.disk_of(files), passed)
    return found


async def main(options: argparse.Namespace, work: Path) -> int:
    """Run the machines, as many at a time as there are processors: each uses about one."""
    chosen = [kernel for kernel in KERNELS if not options.only or kernel.name in options.only]
    usual = [f"tests/kernel/{name}" for name in TESTED]
    usual += [f"--deselect=tests/kernel/{name}" for name in LEFT_OUT if "::" in name]
    image = root.cached(root.of_tests(CHECKOUT), CACHE, say)
    job = Job(image, work / "stage", f"clb_tests={','.join(options.tests or usual)}", LIMIT)
    machine.install(CHECKOUT, machine.build_wheel(work / "dist"), job.stage)
    versions = {kernel: kernels.cached(kernel, CACHE, say).version for kernel in chosen}
    same = machine.fingerprint(job)
    room = asyncio.Semaphore(options.jobs)

    async def in_turn(kernel: Kernel) -> Found | None:
        passed = CACHE / f"{kernel.name}-{same}.found"
        if options.resume and passed.exists():
            say(f"{kernel.name}: has passed")
            return machine.read_found(passed, passed, 0.0)
        async with room:
            return await run_tests(kernel, job, work, passed)

    results = await asyncio.gather(*map(in_turn, chosen))
    found = {kernel: result for kernel, result in zip(chosen, results, strict=True) if result}
    if len(found) < len(chosen):
        return 1
    if not options.only and not options.tests:
        DOCUMENT.write_text(table.document(versions, found))
        say(f"wrote {DOCUMENT.relative_to(CHECKOUT)}")
    return 0


if __name__ == "__main__":
    parsed = parse(sys.argv[1:])
    if os.geteuid() != 0:
        sys.exit("test-kernels: root is needed to make the root of the machines: run it as root or through sudo")
    if subprocess.run(["dpkg", "--print-architecture"], check=False, capture_output=True).stdout != b"amd64\n":
        sys.exit("test-kernels: the machines are amd64, made from this host's packages: run it on an amd64 Debian")
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="clb-discovery-kernels.") as folder:
            sys.exit(asyncio.run(main(parsed, Path(folder))))
    except VmError as error:
        sys.exit(f"test-kernels: {error}")
