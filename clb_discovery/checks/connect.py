"""A TCP connect that the application behind it does not notice, as far as the kernel allows."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from clb_discovery.model.address import Address, format_address, is_ipv4

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close(2) resets the connection


def endpoint(address: Address, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family and the address of a real server as sockets take them."""
    return socket.AF_INET if is_ipv4(address) else socket.AF_INET6, (format_address(address), port)


def hide(connection: socket.socket) -> None:
    """Keep a connect from the application of the server, if the socket is closed as soon as it is connected.

    The kernel delays the ACK, so that the reset of close(2) comes first (TCP_QUICKACK in tcp(7)). HAProxy's checks do
    the same.

    :raises OSError: if the kernel refuses it.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)


async def tcp_connect(address: Address, port: int) -> None:
    """Connect and reset, which is SYN, SYN-ACK and RST on the wire.

    :raises OSError: if the server refuses it, or it cannot be sent. The caller limits the time.
    """
    family, name = endpoint(address, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        hide(probe)
        await asyncio.get_running_loop().sock_connect(probe, name)
