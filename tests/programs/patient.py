"""Clients without pause in a few threads, each with little patience; prints one line for each connect that failed.

Usage: patient.py ADDRESS PORT THREADS PATIENCE. A line has the time of the start and of the end, in seconds of the
monotonic clock, and the error. Each line of standard input is answered with the number of connects until then.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import sys
import threading
import time

_RESET = struct.pack("ii", 1, 0)
_count = itertools.count()


def _connect_on(target: tuple[str, int], patience: float) -> None:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    while True:
        next(_count)
        began = time.monotonic()
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(patience)
            try:
                sock.connect(target)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "given up")
                print(f"{began} {time.monotonic()} {name}", flush=True)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        time.sleep(0.005)


def main(address: str, port: int, threads: int, patience: float) -> None:
    """Connect until standard input ends."""
    for _ in range(threads):
        threading.Thread(target=_connect_on, args=((address, port), patience), daemon=True).start()
    for _ in sys.stdin:
        print(f"connects {next(_count)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
