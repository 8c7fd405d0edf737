"""An ordinary client that connects some times and prints the result of each connect: ok or the errno's name.

Usage: dial.py tcp|udp TIMES ADDRESS PORT. Over UDP it sends an empty datagram on each connected socket.
"""

from __future__ import annotations

import errno
import socket
import sys

from tests.support.pace import patient


def main(protocol: str, times: int, address: str, port: int) -> None:
    """Connect."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]
    for _ in range(times):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
            sock.settimeout(patient(5))
            try:
                sock.connect((address, port))
                if protocol == "udp":
                    sock.send(b"")
            except OSError as error:
                print(errno.errorcode.get(error.errno or 0, str(error)))
            else:
                print("ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
