"""A server that sends each client the address that it has reached, as 16 bytes.

Usage: where.py PORT [HOST...]. Without a host it serves on every loopback address. The client closes first, so that no
TIME_WAIT is left on the server's side.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
from functools import partial

from clb_discovery.model.address import parse_address


def main(port: int, hosts: list[str]) -> None:
    """Serve for ever."""
    selector = selectors.DefaultSelector()
    for host in hosts or ("0.0.0.0", "::"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=4096)
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, partial(accept, selector, listener))
    while True:
        for key, _ in selector.select():
            key.data()


def accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    """Send every waiting client the address that it has reached."""
    with contextlib.suppress(BlockingIOError):
        while True:
            client, _ = listener.accept()
            client.setblocking(False)
            try:
                client.sendall(parse_address(client.getsockname()[0]))
            except ConnectionError:  # the client was killed in between
                client.close()
                continue
            selector.register(client, selectors.EVENT_READ, partial(close, selector, client))


def close(selector: selectors.BaseSelector, client: socket.socket) -> None:
    """Close the connection of a client that has closed."""
    selector.unregister(client)
    client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
