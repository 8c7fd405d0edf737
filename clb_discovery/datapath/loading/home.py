"""The network namespace whose connects judge real servers: that of the process that loads.

In a namespace of its own any process can give a server's address to itself, and refuse connects to it.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final

from clb_discovery.datapath import bpf, selftest
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import HostError
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Home
from clb_discovery.layout.structs import Map

_SO_NETNS_COOKIE: Final = 71  # of asm-generic/socket.h, since Linux 5.14


def make_home(pins: Pins, target: Path) -> None:
    """Make the network namespace of this process home, once the programs are attached to the cgroup.

    :raises HostError: if the kernel does not allow it.
    """
    try:
        fd = bpf.open_pin(pins.map(Map.HOME))
        try:
            _make(fd, pins.instance, target)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot write {pins.map(Map.HOME)}: {error.strerror}") from error


def _make(fd: int, instance: str, target: Path) -> None:
    own = own_namespace()
    if own is None:
        # If this fails, so does the next self-test, which reports it. In a frozen cgroup the next load makes it home.
        selftest.run(instance, target, fd)
        return
    made = elements.pack_home(Home(own, structs.HOME_KNOWN, 0))
    if bpf.lookup(fd, elements.FIRST, structs.HOME.size) != made:
        bpf.update(fd, elements.FIRST, made)


def own_namespace() -> int | None:
    """Return the cookie of the network namespace of this process; None before Linux 5.14."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return None
