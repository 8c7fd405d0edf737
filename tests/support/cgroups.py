"""Cgroups for tests, and ordinary programs inside them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from clb_discovery.datapath.cgroup import find_root
from tests.support.pace import patient
from tests.support.process import wait_until

_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@contextmanager
def made_cgroup(parent: Path | None = None) -> Iterator[Path]:
    """Make a cgroup, by default below the root; processes that are in it at the end are killed."""
    cgroup = (parent or find_root()) / f"clb-test-{uuid4().hex[:8]}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        remove(cgroup)


def remove(cgroup: Path) -> None:
    """Kill all processes in the cgroup and remove it."""
    if not cgroup.exists():
        return

    def is_removed() -> bool:
        for process in (cgroup / "cgroup.procs").read_text().split():
            os.kill(int(process), signal.SIGKILL)
        for child in (*cgroup.glob("clb-discovery-selftest-*"), cgroup):  # of a running or killed sidecar
            with suppress(OSError):
                child.rmdir()
        return not cgroup.exists()

    wait_until(is_removed, f"{cgroup} is removed")


@contextmanager
def frozen(cgroup: Path) -> Iterator[None]:
    """Freeze all processes in the cgroup and below it while the block runs, as `docker pause` does."""
    (cgroup / "cgroup.freeze").write_text("1")
    try:
        yield
    finally:
        (cgroup / "cgroup.freeze").write_text("0")


def inside(cgroup: Path, command: Sequence[str | Path]) -> list[str]:
    """Return the command that runs another in the cgroup."""
    return ["/bin/sh", "-c", _ENTER, str(cgroup), *map(str, command)]


def run_inside(cgroup: Path, *command: str | Path, timeout: float = patient(60)) -> subprocess.CompletedProcess[str]:
    """Run an ordinary program in the cgroup and wait for it."""
    return subprocess.run(inside(cgroup, command), check=False, capture_output=True, text=True, timeout=timeout)


@contextmanager
def entered(cgroup: Path) -> Iterator[None]:
    """Move this process into the cgroup while the block runs; a socket made there belongs to it from then on."""
    own = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].splitlines()[0]
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (find_root() / own.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
