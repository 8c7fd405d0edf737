"""Telling systemd how we are, by the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
from typing import Final

import structlog

_PATIENCE: Final = 1.0
"""Seconds to wait for a service manager that does not read its messages."""

_log = structlog.stdlib.get_logger()


def notify(state: str) -> None:
    """Send one message, such as `READY=1`; nothing happens where no service manager asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A leading @ stands for the NUL of the abstract namespace, unix(7).
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendall(state.encode())
    except OSError as error:  # following discovery matters more than who is told
        _log.warning("cannot notify the service manager", state=state, socket=address, error=str(error))
