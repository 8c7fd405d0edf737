"""Pins that the loader leaves for an unprivileged writer of the maps, and the group that can open them.

Writing into a map requires only the permission to open its pin; creating maps and programs requires CAP_BPF (bpf(2),
since Linux 5.19). So `load` creates what a writer would otherwise create for itself: the maps with which it waits for
running programs, and the iterators that list the records of sockets. Only root can open programs and links, because a
process that can open a link can detach it.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Final

from clb_discovery.datapath import bpf
from clb_discovery.datapath.bpf import GracePeriod
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets import records
from clb_discovery.errors import HostError
from clb_discovery.files import PASSABLE
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Protocol


class Access(IntEnum):
    """Permissions of a group on a map, as the mode of its pin."""

    READ = 0o640
    WRITE = 0o660


WRITER: Final[Mapping[Map, Access]] = {
    Map.FILTER: Access.WRITE,
    Map.CHAINS: Access.WRITE,
    Map.VIRTUAL: Access.WRITE,
    Map.ROWS: Access.WRITE,
    Map.OVERFLOW: Access.WRITE,
    Map.SERVERS: Access.WRITE,
    Map.STEERING: Access.WRITE,
    Map.LISTENER: Access.WRITE,
    Map.CHANGES: Access.WRITE,
    Map.LABELS: Access.WRITE,
    Map.INFO: Access.READ,
    Map.OWNERS: Access.READ,
    Map.PLACES: Access.READ,
    Map.SOCKETS: Access.READ,
    Map.COUNTS: Access.READ,
}
"""Maps that a writer needs. The events of `trace` are not among them: they show which process connects where. The
reader of a ring buffer writes its own position there."""
_LOCKED_BY_GROUP: Final = 0o750
"""The mode of the writer's lock. A process that can open it can hold it, and keep every writer away."""
EVERYTHING: Final[Mapping[Map, Access]] = dict.fromkeys(Map, Access.WRITE)
"""Maps that root opens."""


def prepare(pins: Pins) -> None:
    """Create and pin the objects that a writer cannot create for itself, unless they exist.

    :raises OSError: if the file system or our privileges do not allow it.
    """
    if not all(pin.exists() for pin in pins.waiting):
        made = GracePeriod()
        try:
            for fd, pin in zip(made.maps, pins.waiting, strict=True):
                pin.unlink(missing_ok=True)
                bpf.pin(fd, pin)
        finally:
            made.close()
    for protocol in Protocol:
        if not pins.records(protocol).exists():
            _pin_iterator(pins, protocol)


def _pin_iterator(pins: Pins, protocol: Protocol) -> None:
    stored = bpf.open_pin(pins.map(Map.SOCKETS))
    try:
        link = records.make_iterator(stored, protocol)
    except OSError:  # not supported by every kernel; closing sockets then reports why some stay open
        return
    finally:
        os.close(stored)
    try:
        bpf.pin(link, pins.records(protocol))
    finally:
        os.close(link)


def share(pins: Pins, group: int) -> None:
    """Give a group the permissions of a writer; it can open no other pins of the loader. Everyone may list the pins.

    :param group: its number; root without CAP_CHOWN must be a member.
    :raises HostError: if our privileges do not allow it.
    """
    modes: dict[Path, int] = {pins.map(map_): access for map_, access in WRITER.items()}
    if pins.writer_lock.exists():
        modes[pins.writer_lock] = _LOCKED_BY_GROUP
    modes |= dict.fromkeys(pins.waiting, Access.WRITE)
    modes |= {pin: Access.READ for pin in map(pins.records, Protocol) if pin.exists()}
    try:
        for directory in pins.directories:
            directory.chmod(PASSABLE)
        for pin, mode in modes.items():
            os.chown(pin, -1, group)
            pin.chmod(mode)
    except OSError as error:
        raise HostError(
            f"cannot give {error.filename} to group {group}: {error.strerror}; run as root, with CAP_CHOWN, or as a "
            "member of the group"
        ) from error


def parse_group(text: str) -> int:
    """Return the number of a group.

    :param text: its name or number.
    :raises ValueError: if there is no group with that name.
    """
    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"group {text!r} does not exist; create it: groupadd --system {text}") from None


def grace_period(pins: Pins) -> GracePeriod:
    """Return a `GracePeriod` over the pinned maps, or over private ones if the loader has left none.

    :raises OSError: if our privileges allow neither.
    """
    outer, inner = pins.waiting
    try:
        opened = bpf.open_pin(outer)
    except FileNotFoundError:
        return GracePeriod()
    try:
        return GracePeriod((opened, bpf.open_pin(inner)))
    except OSError:
        os.close(opened)
        raise
