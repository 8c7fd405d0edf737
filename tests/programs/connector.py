"""An ordinary client that connects without pause and records the time and the reached address of each connect.

Usage: connector.py FILE SECONDS PORT ADDRESS... It takes the addresses in turn. Each connect adds a `Connect` to FILE.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.pace import patient

RECORD: Final = struct.Struct("=QQ16si")
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: reset instead of TIME_WAIT, which would use up the ports


class Connect(NamedTuple):
    """One connect: its time span in nanoseconds of CLOCK_MONOTONIC, the address it reached, and the errno or 0."""

    start: int
    end: int
    reached: bytes
    error: int


def read_connects(file: Path) -> list[Connect]:
    """Return the records of a connector."""
    return [Connect(*fields) for fields in RECORD.iter_unpack(file.read_bytes())]


def connect(address: str, port: int) -> Connect:
    """Connect once."""
    start = time.monotonic_ns()
    reached, error = bytes(16), 0
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(patient(5))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        try:
            sock.connect((address, port))
            end = time.monotonic_ns()
            reached = sock.recv(16, socket.MSG_WAITALL)
        except OSError as failure:
            end = time.monotonic_ns()
            error = failure.errno or -1
    return Connect(start, end, reached, error)


def main(file: Path, seconds: float, port: int, addresses: list[str]) -> None:
    """Connect until time is up."""
    deadline = time.monotonic() + seconds
    turn = 0
    with file.open("wb") as output:
        while time.monotonic() < deadline:
            output.write(RECORD.pack(*connect(addresses[turn % len(addresses)], port)))
            turn += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
