"""An application that opens and closes sockets at random without pause, in all possible ways.

Usage: churn.py HOST.... It runs until it is ended. Each host has TCP and UDP on ports 80 and 81. It never has more than
`MOST` sockets.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

MOST: Final = 20
PORTS: Final = (80, 81)
_RESET: Final = struct.pack("ii", 1, 0)

_chance = random.Random()  # noqa: S311 - what to do next


def opened(host: str, kind: socket.SocketKind) -> socket.socket:
    """Return a new socket; half of them are non-blocking."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    sock.settimeout(_chance.choice((0, 1)))
    return sock


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def half_close(sock: socket.socket) -> None:
    """Send the end of data, and close."""
    sock.shutdown(socket.SHUT_WR)
    sock.close()


_ENDS: Final[tuple[Callable[[socket.socket], None], ...]] = (socket.socket.close, reset, half_close)


def main(hosts: list[str]) -> None:
    """Open, reconnect and close for ever."""
    sockets: list[tuple[socket.socket, str]] = []
    while True:
        with contextlib.suppress(OSError):
            if len(sockets) < MOST and _chance.random() < 0.6:
                host, kind = _chance.choice(hosts), _chance.choice((socket.SOCK_STREAM, socket.SOCK_DGRAM))
                sockets.append((opened(host, kind), host))
                sockets[-1][0].connect((host, _chance.choice(PORTS)))
            elif sockets and _chance.random() < 0.3:
                sock, host = _chance.choice(sockets)
                sock.connect((host, _chance.choice(PORTS)))
            elif sockets:
                sock, _ = sockets.pop(_chance.randrange(len(sockets)))
                with sock:
                    _chance.choice(_ENDS)(sock)


if __name__ == "__main__":
    main(sys.argv[1:])
