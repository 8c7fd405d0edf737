"""An ordinary client that connects without pause, counts, and records every failed connect.

Usage: client.py [--once] DIRECTORY PORT ADDRESS... It takes the addresses in turn. DIRECTORY/counts has the numbers of
connects and of failures, over all runs of this client, DIRECTORY/failures a line for each failure. With --once it
connects to each address once, and fails if one of them does.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final

COUNTS: Final = struct.Struct("=QQ")
PAUSE: Final = 0.005  # so that an emulated machine can do something else, too
PATIENCE: Final = 30.0
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: reset instead of TIME_WAIT, which would use up the ports


def connect(address: str, port: int) -> str:
    """Connect once, and return the name of the server.

    :raises OSError: if no server answered.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.connect((address, port))
        return sock.recv(64).decode()


def main(directory: Path, port: int, addresses: list[str], *, once: bool) -> int:
    """Connect until ended; return the number of failures in this run."""
    counts = os.open(directory / "counts", os.O_RDWR | os.O_CREAT, 0o644)
    before = COUNTS.unpack(os.pread(counts, COUNTS.size, 0) or bytes(COUNTS.size))
    made, failed = map(int, before)
    is_ready = "NOTIFY_SOCKET" not in os.environ
    with (directory / "failures").open("a", buffering=1) as failures:
        for address in addresses if once else itertools.cycle(addresses):
            try:
                connect(address, port)
            except OSError as error:
                failed += 1
                failures.write(f"{time.monotonic():.3f} {address}: {error}\n")
            made += 1
            os.pwrite(counts, COUNTS.pack(made, failed), 0)
            if not is_ready:
                is_ready = True
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
            time.sleep(PAUSE)
    return failed - int(before[1])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    once = arguments[:1] == ["--once"]
    directory, port, *addresses = arguments[once:]
    sys.exit(bool(main(Path(directory), int(port), addresses, once=once)))
