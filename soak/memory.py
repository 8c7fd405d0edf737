"""A memory limit for the processes in a cgroup of their own, in either version of cgroups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from clb_discovery.datapath.cgroup import find_root
from tests.support.cgroups import remove
from tests.support.process import wait_until

_V1 = Path("/sys/fs/cgroup/memory")


class MemoryCgroup:
    """A cgroup whose memory can be limited."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._v1 = path.is_relative_to(_V1)

    def limit(self, size: int | None) -> None:
        """Limit the memory to this many bytes; None for no limit."""
        file = self.path / ("memory.limit_in_bytes" if self._v1 else "memory.max")
        with contextlib.suppress(OSError):  # the limit may be below the memory in use
            file.write_text(str(size) if size else ("-1" if self._v1 else "max"))

    def usage(self) -> int:
        """Return the memory in use, in bytes."""
        return int((self.path / ("memory.usage_in_bytes" if self._v1 else "memory.current")).read_text())


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Make one; all processes in it have to end before the block does."""
    root = find_root()
    if "memory" in (root / "cgroup.controllers").read_text().split():
        (root / "cgroup.subtree_control").write_text("+memory")
        cgroup = root / f"clb-soak-memory-{uuid4().hex[:8]}"
        cgroup.mkdir()
        try:
            yield MemoryCgroup(cgroup)
        finally:
            remove(cgroup)
        return
    cgroup = _V1 / f"clb-soak-{uuid4().hex[:8]}"
    cgroup.mkdir()
    try:
        yield MemoryCgroup(cgroup)
    finally:
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), f"{cgroup} is empty")
        cgroup.rmdir()
