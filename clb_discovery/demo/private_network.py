"""Enter a new network namespace with only the loopback interface, so that no packet can leave the machine."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from typing import Final

from clb_discovery.errors import HostError

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1


def enter_private_network() -> None:
    """Move this process, and the children that it starts from now on, into a new network namespace.

    Call it before any thread starts, because unshare(2) moves only the calling thread.

    :raises HostError: without the privilege (CAP_SYS_ADMIN).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot make a network namespace: {reason}; run as root (CAP_SYS_ADMIN)")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
