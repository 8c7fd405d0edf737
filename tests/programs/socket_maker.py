"""Make sockets in the cgroup that this program runs in, and hand them over.

Usage: socket_maker.py FD, a SOCK_SEQPACKET socket. Each request names a family, a type and how many; the answer is the
sockets, and one more message when nobody but the receiver has them.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final

REQUEST: Final = struct.Struct("=iii")
MOST: Final = 200
"""Sockets in one message; the kernel allows 253."""


def main(fd: int) -> None:
    """Serve until the other end is closed."""
    with socket.socket(fileno=fd) as control:
        while request := control.recv(REQUEST.size):
            family, kind, count = REQUEST.unpack(request)
            made = [socket.socket(family, kind) for _ in range(count)]
            socket.send_fds(control, [b"made"], [sock.fileno() for sock in made])
            for sock in made:
                sock.close()
            control.send(b"yours")


if __name__ == "__main__":
    main(int(sys.argv[1]))
