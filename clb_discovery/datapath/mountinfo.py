"""The mounts that this process sees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.errors import HostError

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of proc_pid_mountinfo(5)."""

    root: str
    """The mounted part of the file system: `/`, or for a namespace `net:[4026532281]`."""
    path: Path
    file_system: str


def mounts(text: str | None = None) -> list[Mount]:
    """Return every mount, in the order in which they were made.

    :param text: of proc_pid_mountinfo(5), for tests; read from the kernel by default.
    :raises HostError: if /proc is not mounted.
    """
    lines = read_proc(_MOUNTINFO) if text is None else text
    return [_mount(line) for line in lines.split("\n") if line]


def read_proc(path: Path) -> str:
    """Return a file of proc(5) about this process.

    :raises HostError: if /proc is not mounted.
    """
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; is /proc mounted? mount -t proc proc /proc") from error


def _mount(line: str) -> Mount:
    where, _, what = line.partition(" - ")
    _, _, _, root, path, *_ = where.split(" ")
    return Mount(root, Path(_unescaped(path)), what.split(" ", 1)[0])


def _unescaped(path: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)
