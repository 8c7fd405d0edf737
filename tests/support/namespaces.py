"""Network namespaces for a test, kept by a process or by a mount, and calls inside them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

from clb_discovery.datapath.sockets.namespaces import enter

_T = TypeVar("_T")

_NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
AS_USER: Final = (*_NOBODY, "unshare", "--user", "--map-root-user", "--net")
"""Runs a command as an ordinary user, in namespaces that this user makes."""
_KEEP: Final = "ip link set lo up && echo ready && exec sleep 600"


@contextmanager
def by_process() -> Iterator[Path]:
    """Make a namespace with its loopback up that only a process keeps; return its file."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", _KEEP], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Path(f"/proc/{process.pid}/ns/net")
        finally:
            process.kill()


def users_can_make_them() -> bool:
    """Return whether an ordinary user can: not in a chroot (user_namespaces(7)), and not where the host forbids it."""
    return subprocess.run([*AS_USER, "true"], check=False, capture_output=True).returncode == 0


@contextmanager
def by_mount() -> Iterator[Path]:
    """Make a namespace with its loopback up that no process keeps; return its mount."""
    name = f"clb-test-{uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield Path("/run/netns") / name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def inside(namespace: Path, work: Callable[[], _T]) -> _T:
    """Call a function in a namespace; sockets that it opens stay there."""

    def enter_and_work() -> _T:
        fd = os.open(namespace, os.O_RDONLY)
        try:
            enter(fd)
        finally:
            os.close(fd)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_work).result()
