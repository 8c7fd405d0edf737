"""The demo's own part of the machine: a cgroup, and an instance whose data plane is attached to this cgroup only.

All functions here are synchronous, so a signal cannot interrupt a clean-up: the event loop handles it afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.datapath import cgroup, instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import HostError

_PATIENCE: Final = 5.0  # seconds for a process to end, and for the kernel to release its cgroup
_POLL: Final = 0.01


class Sandbox(NamedTuple):
    """The cgroup of the clients, and the pins of an instance. Both are named after this process."""

    cgroup: Path
    pins: Pins


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Make a sandbox until the block ends; raises HostError without cgroup v2, or the permission to make a cgroup."""
    pins = Pins(f"demo-{os.getpid()}")
    directory = cgroup.find_root() / f"clb-{pins.instance}"
    with ExitStack() as stack:
        try:
            directory.mkdir()
        except OSError as error:
            raise HostError(f"cannot make a cgroup below {directory.parent}: {error.strerror}; run as root") from error
        stack.callback(_remove_cgroup, directory)
        stack.callback(shutil.rmtree, instance.RUN / pins.instance, ignore_errors=True)
        stack.callback(loader.unload, pins)
        yield Sandbox(directory, pins)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child process: by SIGTERM, and by SIGKILL if it does not end in time."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_cgroup(directory: Path) -> None:
    for below in directory.iterdir():
        if below.is_dir():
            _remove_cgroup(below)
    deadline = time.monotonic() + _PATIENCE
    while True:
        for pid in (directory / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            directory.rmdir()
        except OSError as error:
            # The cgroup stays busy for a moment after its processes have ended.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise HostError(f"cannot remove {directory}: {error.strerror}; remove it with rmdir") from error
            time.sleep(_POLL)
        else:
            return
