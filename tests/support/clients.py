"""Clients that connect without pause while something happens to the data plane."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs.connector import RECORD, Connect, read_connects
from tests.support.cgroups import inside
from tests.support.process import accepts, running, wait_until


@contextmanager
def connecting(cgroup: Path, port: int, directory: Path, *addresses: str) -> Iterator[list[Connect]]:
    """Connect without pause to the server that says where it is, while the block runs; then fill the list."""
    file, connects = directory / "connects", list[Connect]()
    program: list[str | Path] = [sys.executable, "-m", "tests.programs.connector", file, "60", str(port), *addresses]
    with running([sys.executable, "-m", "tests.programs.where", str(port)], directory / "where.log"):
        wait_until(lambda: accepts(port), "the server accepts")
        with running(inside(cgroup, program), directory / "connector.log"):
            wait_until(lambda: file.exists() and file.stat().st_size > 0, "the client connects")
            yield connects
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // RECORD.size * RECORD.size])  # it was ended in the middle of its work
    connects += read_connects(file)
