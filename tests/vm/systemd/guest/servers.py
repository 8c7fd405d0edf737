"""Real servers: each sends its name to every client, and closes.

Usage: servers.py ADDRESS:PORT...
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from contextlib import suppress


def ready() -> None:
    """Report READY=1 to systemd, by sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])


def main(names: list[str]) -> None:
    """Serve for ever."""
    with selectors.DefaultSelector() as selector:
        for name in names:
            host, _, port = name.rpartition(":")
            family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            server = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=4096)
            selector.register(server, selectors.EVENT_READ, (server, name))
        ready()
        while True:
            for key, _ in selector.select():
                server, name = key.data
                with suppress(ConnectionError), server.accept()[0] as connection:  # the client may have been killed
                    connection.send(name.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
