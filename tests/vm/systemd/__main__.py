"""`make test-systemd`: run the units under the systemd of Debian 12 and 13, while a client connects without pause.

Usage: python -m tests.vm.systemd [-h] [--only SUITE] [-- PYTEST-ARGUMENT...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

from tests.support.ending import ended_by_signals
from tests.vm import kernels
from tests.vm.errors import VmError
from tests.vm.kernels import KERNELS, Kernel
from tests.vm.machine import Outcome, empty_disk, emulate, make_initramfs, outcome, read_disk
from tests.vm.systemd import root
from tests.vm.systemd.package import make_later
from tests.vm.systemd.root import Packages

CHECKOUT: Final = Path(__file__).parents[3]
CACHE: Final = CHECKOUT / ".cache" / "systemd"
KERNEL_CACHE: Final = CHECKOUT / ".cache" / "kernels"
SUITES: Final = ("bookworm", "trixie")
BOOTS: Final = ("first_boot", "second_boot", "documents")
LIMIT: Final = 3000.0


class Boot(NamedTuple):
    """The results of the scenarios of one boot."""

    tests: Outcome
    connects: int
    failed: int
    seconds: float


def say(text: str) -> None:
    """Print a line for people."""
    print(f"test-systemd: {text}", flush=True)


def read_boot(disk: Path, console: Path, seconds: float) -> Boot:
    """Return the results that a machine wrote to its disk.

    :raises VmError: if they are not complete.
    """
    try:
        report = read_disk(disk)["tests.xml"]
        counted = {"connects": 0, "failed": 0}
        for found in ET.fromstring(report).iter("property"):  # noqa: S314 - pytest's own, from our own machine
            counted[found.attrib["name"]] += int(found.attrib["value"])
        return Boot(outcome(report), counted["connects"], counted["failed"], seconds)
    except (tarfile.TarError, KeyError, ValueError, ET.ParseError) as error:
        raise VmError(f"it ended without results ({error}); its console: {console}") from error


def is_good(boot: Boot) -> bool:
    """Return whether a boot has passed."""
    ran = boot.tests.passed and not boot.tests.failed and not boot.tests.skipped
    return bool(ran and boot.connects and not boot.failed)


async def run_machine(kernel: Kernel, packages: Packages, boots: Mapping[str, str], work: Path) -> bool:
    """Switch a machine on once for each boot; return whether all boots have passed.

    :param boots: their names, and pytest's arguments in each of them.
    """
    suite = kernel.suite
    parts = kernels.cached(kernel, KERNEL_CACHE, say)
    disk = work / "disk"
    root.make(CHECKOUT, suite, packages, CACHE, disk)
    initramfs = make_initramfs(parts, CHECKOUT / root.GUEST / "init", work / "initramfs")
    good = True
    for name, arguments in boots.items():
        console = CACHE / f"{suite}-{name}.log"
        say(f"{suite}: {name.replace('_', ' ')} with Linux {parts.version}; its console is {console}")
        found = empty_disk(work)
        drives = [f"file={path},if=virtio,format=raw" for path in (disk, found)]
        append = f"systemd.journald.forward_to_console clb_tests={arguments}"
        seconds = await emulate(parts, initramfs, append, drives, limit=LIMIT, console=console)
        boot = read_boot(found, console, seconds)
        for test in boot.tests.failed:
            say(f"{suite}: failed: {test}")
        scenarios = f"{boot.tests.passed} scenarios passed, {len(boot.tests.failed)} failed"
        connects = f"{boot.failed} of {boot.connects} connects failed"
        say(f"{suite}: {name.replace('_', ' ')}: {scenarios}; {connects}; {boot.seconds:.0f} s")
        good &= is_good(boot)
    return good


async def main(suites: Sequence[str], package: Path, tests: Sequence[str]) -> int:
    """Run one machine after the other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    results = []
    boots = {"some": ",".join(tests)} if tests else {name: f"{root.GUEST / name}.py" for name in BOOTS}
    with tempfile.TemporaryDirectory(prefix="clb-discovery-systemd.", dir="/var/tmp") as name:
        work = Path(name)
        (work / "later").mkdir()
        packages = Packages(package, make_later(CHECKOUT, package, work / "later"))
        for kernel in KERNELS:
            if kernel.suite in suites:
                (work / kernel.suite).mkdir()
                results.append(await run_machine(kernel, packages, boots, work / kernel.suite))
                shutil.rmtree(work / kernel.suite)
    return 0 if all(results) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/test-systemd", description=__doc__.split(":")[1].split("\n")[0])
    parser.add_argument("--only", choices=SUITES, action="append", help="this Debian; repeatable")
    parser.add_argument("tests", nargs="*", help="arguments for pytest, in one boot, instead of all scenarios")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("test-systemd: root is needed to make the disks of the machines: run it as root or through sudo")
    try:
        (built,) = (CHECKOUT / "dist").glob("clb-discovery_*_all.deb")
        with ended_by_signals():
            sys.exit(asyncio.run(main(options.only or list(SUITES), built, options.tests)))
    except VmError as error:
        sys.exit(f"test-systemd: {error}")
