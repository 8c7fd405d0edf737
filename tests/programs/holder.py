"""Another process that holds a socket of the test, inherited or passed, and prints what it sees of it.

Usage: holder.py inherited FD | passed FD; the second receives the socket over a UNIX socket. It prints the peer's
address, sends `hello` after a line on stdin and prints the answer, then waits for the end of stdin.
"""

from __future__ import annotations

import socket
import sys


def received(fd: int) -> int:
    """Return the descriptor that arrives over a UNIX socket."""
    with socket.socket(fileno=fd) as channel:
        _, fds, _, _ = socket.recv_fds(channel, 16, 1)
        (passed,) = fds
        return passed


def main(how: str, fd: int) -> None:
    """Hold the socket."""
    with socket.socket(fileno=received(fd) if how == "passed" else fd) as sock:
        sock.settimeout(5)
        print(*sock.getpeername()[:2], flush=True)
        sys.stdin.readline()
        sock.send(b"hello")
        print(sock.recv(100).decode(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
