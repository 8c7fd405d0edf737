"""Clients' records of connects: client.c's `struct record`, in files that are renamed when complete."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

RECORD: Final = struct.Struct("=QQIIHHI")
_FILE_NS: Final = 5_000_000_000


class Outcome(IntEnum):
    """How far a connect came."""

    REACHED = 0
    CONNECT_FAILED = 1
    NO_ANSWER = 2
    WRONG_PEER = 3
    """The application did not see the VIP as its peer."""
    USED = 4
    """A read on a connection that had been in use failed or took long, or it was closed; not a connect of its own."""


class Record(NamedTuple):
    """One connect, or one datagram of an unconnected socket."""

    start: int
    """Nanoseconds of CLOCK_MONOTONIC."""
    end: int
    """The time of the outcome, including the server's answer."""
    reached: int
    """The number of the real server; 0 for none."""
    error: int
    target: int
    """Index among the client's targets."""
    stage: int
    zero: int = 0


def read(file: Path) -> Iterator[Record]:
    """Yield the records of a file that is complete."""
    return map(Record._make, RECORD.iter_unpack(file.read_bytes()))


class Writer:
    """Writes the records of one client in Python; for many threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._path = folder
        self._files = 0
        self._began = 0

    def note(self, start: int, target: int, stage: Outcome, error: int = 0, reached: int = 0) -> None:
        """Record a connect that has ended now."""
        with self._lock:
            self._note(start, target, stage, error, reached)

    def _note(self, start: int, target: int, stage: Outcome, error: int, reached: int) -> None:
        end = time.monotonic_ns()
        if self._file and end - self._began > _FILE_NS:
            self.close()
        if self._file is None:
            self._path = self._folder / f"{self._files:06}.part"
            self._file, self._began = self._path.open("wb"), end
            self._files += 1
        self._file.write(RECORD.pack(start, end, reached, error, target, stage, 0))

    def close(self) -> None:
        """Complete the current file."""
        if self._file:
            self._file.close()
            self._path.rename(self._path.with_suffix(".done"))
            self._file = None
