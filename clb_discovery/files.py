"""Replacing a file as a whole."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_MODE: Final = 0o644
"""Of a file that was not there."""


def replace_file(path: Path, content: bytes, *, lasting: bool) -> None:
    """Give a file new content: readers see all of the old or all of the new, and it keeps its owner, mode and labels.

    One writer at a time, which is the caller's business: the new content is first written beside the file, under a name
    that depends on the file's alone.

    :param path: no link, which would be replaced itself.
    :param lasting: whether it has to be there after a crash of the machine: it is on disk before it has the name, and
        the name is before this returns.
    :raises OSError: if it cannot be written; the file is then as it was, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.clb-discovery")
    temporary.unlink(missing_ok=True)  # a crash left it
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            _take_after(path, fd)
            if lasting:
                os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if lasting:
        with opened_directory(path.parent) as directory:
            os.fsync(directory)


def raise_file_limit() -> None:
    """Have as many descriptors as the host allows; programs that count on fewer than 1,024 (select(2)) are not ours."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # it stays what it was
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """Open a directory while the block runs, to lock it or to bring it to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _take_after(path: Path, fd: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        os.fchmod(fd, _MODE)
        return
    own = os.fstat(fd)
    if (old.st_uid, old.st_gid) != (own.st_uid, own.st_gid):
        os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))
    for name in os.listxattr(path):
        with suppress(OSError):  # a label may be as good as set already, and not ours to set
            os.setxattr(fd, name, os.getxattr(path, name))
