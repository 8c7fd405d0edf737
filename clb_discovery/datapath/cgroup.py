"""Find the cgroup v2 hierarchy, and identify cgroups."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clb_discovery.datapath.mountinfo import mounts, read_proc
from clb_discovery.errors import HostError

_OWN: Final = Path("/proc/self/cgroup")


def find_root(mountinfo: str | None = None) -> Path:
    """Return the mount point of the cgroup v2 hierarchy: pure (/sys/fs/cgroup) or hybrid (/sys/fs/cgroup/unified).

    :param mountinfo: text of proc_pid_mountinfo(5), for tests; read from the kernel by default.
    :raises HostError: if it is not mounted.
    """
    for mount in mounts(mountinfo):
        if mount.file_system == "cgroup2":
            return mount.path
    raise HostError("no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")


def resolve(path: str | None) -> Path:
    """Return the cgroup that `--cgroup` means, the root of the hierarchy by default.

    :raises HostError: if there is no cgroup v2, or the path is not a cgroup in it.
    """
    root = find_root()
    # Resolved, because .. or a link in the path can lead out of the hierarchy.
    cgroup = root if path is None else Path(path).resolve()
    if path == "" or not (cgroup / "cgroup.procs").is_file() or not cgroup.is_relative_to(root):
        raise HostError(f"{path!r} is not a cgroup of version 2; --cgroup needs a directory below {root}")
    return cgroup


def identity(cgroup: Path) -> int | None:
    """Return the kernel's id of a cgroup, which is its inode number, or None if it is gone."""
    try:
        return cgroup.stat().st_ino
    except FileNotFoundError:
        return None


def contains_self(cgroup: Path) -> bool:
    """Tell whether this process is in the cgroup or below it."""
    for line in read_proc(_OWN).splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            own = find_root() / path.lstrip("/")
            return own == cgroup or own.is_relative_to(cgroup)
    return False


def is_frozen(cgroup: Path) -> bool:
    """Tell whether the cgroup or one above it is frozen, so that each process freezes that enters it."""
    for one in (cgroup, *cgroup.parents):
        with contextlib.suppress(OSError):  # the root of the hierarchy cannot be frozen
            if (one / "cgroup.freeze").read_text().strip() == "1":
                return True
    return False


@contextlib.contextmanager
def temporary_child(parent: Path, name: str) -> Iterator[Path]:
    """Make a cgroup below another while the block runs; its processes must have ended before the block ends.

    The creator holds a lock on the cgroup. One without a lock was left by a killed process, and is removed here.
    """
    for left in parent.glob(f"{name}-*"):
        with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_NB):  # in use, or already gone
            left.rmdir()
    with contextlib.ExitStack() as stack:
        child = None
        while child is None or not child.exists():  # another process may have removed it before it was locked
            child = parent / f"{name}-{os.urandom(8).hex()}"
            child.mkdir()
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(_locked(child))
        try:
            yield child
        finally:
            child.rmdir()


@contextlib.contextmanager
def _locked(directory: Path, how: int = 0) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(fd)
