"""Make sockets in the cgroup that this program runs in, and hand them over.

Usage: socket_maker.py FD, a SOCK_SEQPACKET socket. Each request has a family, a type and a count; the answer has the
sockets, and a second message comes when only the receiver has them.
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
