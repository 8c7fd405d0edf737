"""One emulated machine: its initramfs, its run, and its results."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
import tarfile
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

from tests.vm.debian import run
from tests.vm.errors import VmError
from tests.vm.features import Finding
from tests.vm.kernels import Parts

FOUND_SIZE: Final = 32 * 2**20
MEMORY: Final = "2G"
CHECKOUT: Final = ("tests", "bpf", "contrib", "pyproject.toml")
"""The parts of the checkout that tests read, beside the wheel."""
PROCESSORS: Final = ("-smp", "2")


class Job(NamedTuple):
    """The job of every machine."""

    root: Path
    stage: Path
    """The result of `install`."""
    append: str
    """Added to the kernel's command line, for `guest/run`."""
    limit: float
    """Seconds until the machine is switched off."""
    options: tuple[str, ...] = PROCESSORS
    """QEMU's options for processors and clocks."""


class Outcome(NamedTuple):
    """The results of the tests."""

    passed: int
    failed: tuple[str, ...]
    skipped: Mapping[str, str]
    """Reasons by name."""


class Found(NamedTuple):
    """The results of a machine."""

    features: Mapping[str, Finding]
    tests: Outcome
    seconds: float


def build_wheel(folder: Path) -> Path:
    """Build the wheel that all machines get.

    :raises VmError: if it cannot be built.
    """
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder])
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(checkout: Path, wheel: Path, stage: Path, names: Sequence[str] = CHECKOUT) -> None:
    """Put the wheel, and the needed parts of the checkout, into the stage for every machine.

    :raises VmError: if the wheel cannot be installed.
    """
    pip = [shutil.which("python3", path=checkout / ".venv" / "bin") or "python3", "-m", "pip", "install", "--quiet"]
    run([*pip, "--disable-pip-version-check", "--no-deps", "--no-index", "--target", stage / "site", wheel])
    for name in names:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, stage / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, stage)


def fingerprint(job: Job) -> str:
    """Return a value that is equal for the same program, tests and arguments."""
    digest = hashlib.sha256(job.append.encode())
    for path in sorted(job.stage.rglob("*")):
        if path.is_file() and not {"__pycache__", "direct_url.json", "RECORD"} & {path.name, path.parent.name}:
            digest.update(f"{path.relative_to(job.stage)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


async def boot(parts: Parts, job: Job, work: Path, console: Path) -> float:
    """Do a job in a machine, which writes its disk; return how many seconds it ran.

    :param work: an empty directory, for the machine's files.
    :param console: the file for its output.
    :raises VmError: if it did not finish.
    """
    tree = work / "initramfs"
    shutil.copytree(job.stage, tree / "checkout")
    init = job.stage / "tests" / "vm" / "guest" / "init"
    disk = empty_disk(work)
    drives = (f"file={job.root},if=virtio,format=raw,readonly=on", f"file={disk},if=virtio,format=raw")
    initramfs = make_initramfs(parts, init, tree)
    return await emulate(parts, initramfs, job.append, drives, limit=job.limit, console=console, options=job.options)


def disk_of(work: Path) -> Path:
    """Return the disk for a machine's results."""
    return work / "found"


def empty_disk(work: Path) -> Path:
    """Make that disk."""
    disk = disk_of(work)
    disk.write_bytes(b"")
    os.truncate(disk, FOUND_SIZE)
    return disk


async def emulate(
    parts: Parts,
    initramfs: Path,
    append: str,
    drives: Sequence[str],
    *,
    limit: float,
    console: Path,
    options: Sequence[str] = PROCESSORS,
) -> float:
    """Run a machine until it switches itself off; return after how many seconds.

    :param append: to the kernel's command line.
    :param drives: as QEMU's -drive takes them; the first is /dev/vda.
    :param limit: seconds until it is switched off.
    :param console: the file for its output.
    :param options: QEMU's, for processors and clocks.
    :raises VmError: if it did not end by itself, or failed.
    """
    command = [
        *("setpriv", "--pdeathsig", "KILL"),  # the machine must not outlive this process
        *("qemu-system-x86_64", "-accel", os.environ.get("QEMU_ACCEL", "tcg"), "-cpu", "max"),
        *(*options, "-m", MEMORY, "-nic", "none", "-no-reboot"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", str(parts.image), "-initrd", str(initramfs)),
        # On a busy host the kernel would find its timer too slow, and panic.
        *("-append", f"console=ttyS0 quiet panic=-1 no_timer_check {append}"),
        *(argument for drive in drives for argument in ("-drive", drive)),
    ]
    started = time.monotonic()
    with console.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=output, stderr=output)
        try:
            async with asyncio.timeout(limit):
                status = await process.wait()
        except TimeoutError:
            raise VmError(f"switched off after {limit:.0f} s; its console: {console}") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if status != 0:
        raise VmError(f"QEMU ended with {status}; its console: {console}")
    return time.monotonic() - started


def make_initramfs(parts: Parts, init: Path, tree: Path) -> Path:
    """Make the first root: busybox, the modules, the first program, and the existing contents of the tree.

    :returns: the archive, beside the tree.
    """
    for name in ("bin", "sbin", "lib", "proc", "sys", "dev", "image", "memory", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(parts.busybox, tree / "bin" / "busybox")
    shutil.copytree(parts.modules, tree / "lib" / "modules")
    shutil.copy(init, tree / "init")
    (tree / "init").chmod(0o755)
    archive = tree.with_suffix(".cpio")
    pack = 'cd "$0" && find . | "$1" cpio -o -H newc >"$2"'
    run(["sh", "-ec", pack, tree, parts.busybox, archive])
    return archive


def read_disk(disk: Path) -> dict[str, bytes]:
    """Return the files that a machine wrote to its disk, by their names.

    :raises tarfile.TarError: if there are none.
    """
    with tarfile.open(disk) as archive:
        files = {member.name.removeprefix("./"): archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in files.items() if file}


def read_found(disk: Path, console: Path, seconds: float) -> Found:
    """Return the results that a machine wrote to its disk.

    :raises VmError: if they are not complete.
    """
    try:
        texts = read_disk(disk)
        features = {name: Finding(*found) for name, found in json.loads(texts["features.json"]).items()}
        return Found(features, outcome(texts["tests.xml"]), seconds)
    except (tarfile.TarError, KeyError, ValueError, ET.ParseError) as error:
        raise VmError(f"it ended without results ({error}); its console: {console}") from error


def outcome(report: bytes) -> Outcome:
    """Return the results in a JUnit report."""
    passed, failed, skipped = 0, [], {}
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314 - pytest's own, from our own machine
        name, skip = f"{case.get('classname')}::{case.get('name')}", case.find("skipped")
        if any(case.find(kind) is not None for kind in ("failure", "error")):
            failed.append(name)
        elif skip is not None:
            skipped[name] = skip.get("message", "")
        else:
            passed += 1
    return Outcome(passed, tuple(failed), skipped)
