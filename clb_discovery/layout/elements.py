"""Elements of the maps as Python values, and their packed form."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from clb_discovery.layout.structs import (
    EVENT,
    INFO,
    LABEL,
    MEMBER,
    OWNER,
    PLACE,
    ROW,
    ROW_SLOTS,
    SERVER,
    SLOT,
    SOCKET,
    VIP,
    VIRTUAL,
)
from clb_discovery.model.address import Address
from clb_discovery.model.servers import Algorithm, Protocol, RealServer, Vip

NEW_SERVER: Final = bytes(SERVER.size)
"""The element of a new server, and of an index without a server."""
INFO_KEY: Final = bytes(4)
_INDEX: Final = struct.Struct("=I")


class Virtual(NamedTuple):
    """Decoded `struct clb_virtual`."""

    generation: int
    servers: int
    tier: int
    algorithm: int
    flags: int
    eject_after: int
    eject_first_ms: int
    eject_most_ms: int
    refusal: int


class Slot(NamedTuple):
    """Decoded `struct clb_slot`; the member stays packed, because packed members are the keys everywhere."""

    member: bytes
    keep: int
    out_of: int
    alias: int
    first: int
    tier: int
    weight: int
    priority: int
    server: int


_NO_SLOT: Final = Slot(bytes(MEMBER.size), 0, 0, 0, 0, 0, 0, 0, 0)


class Server(NamedTuple):
    """Decoded `struct clb_server`."""

    connects: int
    failures: int
    ejected_until: int
    recovered_at: int
    began: int
    active: int
    in_row: int
    ejections: int
    probing: int
    times_ejected: int


class Owner(NamedTuple):
    """Decoded `struct clb_owner`."""

    socket: int
    crowded: int

    @property
    def cookie(self) -> int:
        """The cookie of the socket; 0 for none."""
        return self.socket >> 1


class Socket(NamedTuple):
    """Decoded `struct clb_socket`."""

    began: int
    started: int
    server: int
    asked: bytes
    priority: int
    counts: int
    watched: int
    member: bytes


class Event(NamedTuple):
    """Decoded `struct clb_event`."""

    time: int
    latency: int
    socket: int
    cgroup: int
    process: int
    kind: int
    member: bytes
    command: str


class Label(NamedTuple):
    """Decoded `struct clb_label`."""

    service: str
    source: str


class Info(NamedTuple):
    """Decoded `struct clb_info`."""

    layout: int
    features: int
    loader: str
    build: str
    cgroup: str


def pack_vip(vip: Vip) -> bytes:
    """Return the key of a virtual server."""
    return VIP.struct.pack(vip.address, vip.port.to_bytes(2, "big"), vip.protocol)


def unpack_vip(data: bytes) -> Vip:
    """Parse the key of a virtual server.

    :raises ValueError: if the protocol is unknown.
    """
    address, port, protocol = VIP.struct.unpack(data)
    return Vip(Address(address), int.from_bytes(port, "big"), Protocol(protocol))


def pack_member(vip: bytes, server: RealServer) -> bytes:
    """Return the identity of a real server of a virtual server."""
    return MEMBER.struct.pack(vip, server.address, server.port.to_bytes(2, "big"))


def refusal(vip: bytes) -> bytes:
    """Return the member that stands for the refusal of an empty pool."""
    return MEMBER.struct.pack(vip, bytes(16), bytes(2))


def unpack_member(data: bytes) -> tuple[bytes, Address, int]:
    """Return the packed VIP, the address and the port (0 for the refusal) of a member."""
    vip, address, port = MEMBER.struct.unpack(data)
    return vip, Address(address), int.from_bytes(port, "big")


def protocol_of(member: bytes) -> Protocol:
    """Return the protocol of a packed member's virtual server."""
    return unpack_vip(member[: VIP.size]).protocol


def is_refusal(member: bytes) -> bool:
    """Tell whether the member stands for the refusal of an empty pool."""
    return member[36:38] == b"\0\0"


def pack_virtual(virtual: Virtual) -> bytes:
    """Return the published state of a virtual server."""
    return VIRTUAL.struct.pack(*virtual)


def unpack_virtual(data: bytes) -> Virtual:
    """Parse the published state of a virtual server."""
    return Virtual(*VIRTUAL.struct.unpack(data))


def pack_place(generation: int, row: int) -> bytes:
    """Return the key of a row of slots."""
    return PLACE.struct.pack(generation, row)


def unpack_place(data: bytes) -> tuple[int, int]:
    """Return the generation and the row number of the key of a row."""
    generation, row = PLACE.struct.unpack(data)
    return generation, row


def pack_slot(slot: Slot) -> bytes:
    """Return a slot as it is in its row."""
    return SLOT.struct.pack(*slot)


def pack_rows(slots: Sequence[Slot]) -> list[bytes]:
    """Return the rows of a generation; the last one is padded with zeros."""
    packed = b"".join(map(pack_slot, slots))
    return [packed[at : at + ROW.size].ljust(ROW.size, b"\0") for at in range(0, len(packed), ROW.size)]


def rows(slots: int) -> int:
    """Return the number of rows for this many slots."""
    return -(-slots // ROW_SLOTS)


def unpack_row(data: bytes) -> list[Slot]:
    """Parse the slots of a row, without the zero ones at its end."""
    slots = [Slot(*values) for values in SLOT.struct.iter_unpack(data)]
    while slots and slots[-1] == _NO_SLOT:
        slots.pop()
    return slots


def pack_index(index: int) -> bytes:
    """Return the key of an element of an array."""
    return _INDEX.pack(index)


def unpack_index(data: bytes) -> int:
    """Parse the key of an element of an array."""
    (index,) = _INDEX.unpack(data)
    return int(index)


def pack_label(label: Label) -> bytes:
    """Return the names of a virtual server; one that is too long is cut between two characters."""
    return LABEL.struct.pack(_text(label.service, 256), _text(label.source, 272))


def unpack_label(data: bytes) -> Label:
    """Parse the names of a virtual server."""
    service, source = LABEL.struct.unpack(data)
    return Label(_untext(service), _untext(source))


def pack_info(info: Info) -> bytes:
    """Return the record of the loader about what it has loaded."""
    return INFO.struct.pack(
        info.layout, info.features, _text(info.loader, 16), _text(info.build, 72), _text(info.cgroup, 1024)
    )


def unpack_info(data: bytes) -> Info:
    """Parse the record of the loader about what it has loaded."""
    layout, features, loader, build, cgroup = INFO.struct.unpack(data)
    return Info(layout, features, _untext(loader), _untext(build), _untext(cgroup))


def unpack_server(data: bytes) -> Server:
    """Parse the counters and the health of a server."""
    return Server(*SERVER.struct.unpack(data))


def unpack_owner(data: bytes) -> Owner:
    """Parse the owner of a record."""
    return Owner(*OWNER.struct.unpack(data))


def unpack_socket(data: bytes) -> Socket:
    """Parse the record of a connected socket."""
    return Socket(*SOCKET.struct.unpack(data))


def unpack_event(data: bytes) -> Event:
    """Parse an event: the choice for a connect, or its outcome."""
    time, latency, socket, cgroup, process, kind, member, command = EVENT.struct.unpack(data)
    return Event(time, latency, socket, cgroup, process, kind, member, _untext(command))


def algorithm_of(number: int) -> Algorithm | None:
    """Return the scheduler with this number, or None if only a newer version knows it."""
    return Algorithm(number) if number in Algorithm.__members__.values() else None


def _text(text: str, size: int) -> bytes:
    return text.encode(errors="replace")[: size - 1].decode(errors="ignore").encode()


def _untext(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")
