"""Interfaces whose packets or frames a test reads and writes (TUN, TAP), in the namespace of the calling thread."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from typing import Final
from uuid import uuid4

_SET_INTERFACE: Final = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_TUN, _TAP, _BARE = 0x0001, 0x0002, 0x1000  # IFF_TUN, IFF_TAP, IFF_NO_PI


def open_tun(*addresses: str, with_neighbours: bool = False) -> tuple[int, str]:
    """Make an interface with these addresses, which exists as long as the descriptor.

    :param with_neighbours: whether it is an Ethernet, where the kernel looks for neighbours (TAP).
    :returns: the descriptor and the name.
    """
    name = f"clb{uuid4().hex[:6]}"
    tun = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(
            tun, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), (_TAP if with_neighbours else _TUN) | _BARE)
        )
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
