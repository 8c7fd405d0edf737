"""Find the network namespaces of this host, and work inside them.

A namespace is found through a process in it, or through a mount such as `ip netns` makes. One that is held only by a
thread or an open descriptor is not found. Reading the namespace of a process with more privileges than ours requires
CAP_SYS_PTRACE; entering a namespace requires CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from clb_discovery.datapath.mountinfo import mounts

_CLONE_NEWNET: Final = 0x40000000
_OWN: Final = Path("/proc/thread-self/ns/net")
_NAME: Final = re.compile(r"net:\[(\d+)\]")

_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)


class Namespaces:
    """Iterates over the network namespaces that can be found, each once, that of the calling thread first."""

    def __init__(self) -> None:
        self.hidden = 0
        """Number of processes whose namespace we cannot read."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the inode number and a descriptor of each namespace, which stays open until the next iteration."""
        self.hidden = 0
        seen: set[int] = set()
        for inode, path in self._candidates():
            if inode in seen:
                continue
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError:  # the process has ended, the mount is gone
                continue
            try:
                if os.fstat(fd).st_ino == inode:  # else the process has moved, or another mount covers this one
                    seen.add(inode)
                    yield inode, fd
            finally:
                os.close(fd)

    def _candidates(self) -> Iterator[tuple[int, Path]]:
        yield _OWN.stat().st_ino, _OWN
        for process in Path("/proc").glob("[0-9]*"):
            path = process / "ns/net"
            try:
                yield from _named(str(path.readlink()), path)
            except PermissionError:
                self.hidden += 1
            except OSError:  # the process has ended
                continue
        for mount in mounts():
            yield from _named(mount.root, mount.path)


def inside(namespace: int, work: Callable[[], _T]) -> _T:
    """Call a function inside a network namespace and return its result. Sockets that it opens stay in the namespace.

    :param namespace: its descriptor.
    :raises OSError: if we are not allowed to enter it, or no thread can be started.
    """

    def enter_and_work() -> _T:
        enter(namespace)
        return work()

    if os.fstat(namespace).st_ino == _OWN.stat().st_ino:
        return work()
    with ThreadPoolExecutor(1) as thread:
        try:
            working = thread.submit(enter_and_work)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"{error}; raise TasksMax=, or ulimit -u") from None
        return working.result()


def enter(namespace: int) -> None:
    """Move the calling thread, and no other, into a network namespace.

    :raises OSError: if we are not allowed to.
    """
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter it: {os.strerror(number)}; it needs CAP_SYS_ADMIN")


def _named(name: str, path: Path) -> Iterator[tuple[int, Path]]:
    if match := _NAME.fullmatch(name):
        yield int(match[1]), path
