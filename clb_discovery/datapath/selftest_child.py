"""Make a UDP socket of each family in a cgroup, and pass them to the parent; imports only the standard library.

Usage: selftest_child.py CGROUP SOCKET. SOCKET is the number of an inherited socket, whose one message carries the
sockets; a family that the kernel does not have is left out. Our modules would take four times as long to start.
"""

from __future__ import annotations

import os
import socket
import sys


def main(cgroup: str, control: int) -> None:
    """Enter the cgroup, to which the sockets then belong, in whatever process they are used."""
    with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as members:  # noqa: PTH123 - pathlib starts slowly
        members.write(str(os.getpid()))
    made = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            made.append(socket.socket(family, socket.SOCK_DGRAM))
        except OSError:
            continue
    with socket.socket(fileno=control) as parent:
        socket.send_fds(parent, [b"made"], [sock.fileno() for sock in made])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
