"""Interfaces whose packets a test reads and writes (TUN), in the network namespace of the calling thread."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from typing import Final
from uuid import uuid4

_SET_INTERFACE: Final = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_TUN, _BARE = 0x0001, 0x1000  # IFF_TUN, IFF_NO_PI


def open_tun(*addresses: str) -> tuple[int, str]:
    """Make an interface with these addresses, which exists as long as the descriptor.

    :returns: the descriptor and the name.
    """
    name = f"clb{uuid4().hex[:6]}"
    tun = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(tun, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN | _BARE))
        for address in addresses:
            ip("address", "add", address, "dev", name, *["nodad"] * (":" in address))
        ip("link", "set", name, "up")
    except BaseException:
        os.close(tun)
        raise
    return tun, name


def ip(*arguments: str) -> None:
    """Change the network namespace of this thread, by iproute2."""
    subprocess.run(["ip", *arguments], check=True)
