"""Elements of the maps as Python values, and their packed form."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from clb_discovery.layout.structs import (
    BUCKET,
    BUCKET_PLACES,
    CHANGE,
    EVENT,
    HOME,
    INFO,
    LABEL,
    MEMBER,
    PLACE,
    ROW_SLOTS,
    SERVER,
    SLOT,
    SOCKET,
    STEERING,
    VIP,
    VIRTUAL,
)
from clb_discovery.model.address import Address
from clb_discovery.model.servers import Algorithm, Protocol, RealServer, Vip

NEW_SERVER: Final = bytes(SERVER.size)
"""The element of a new server, and of an index without a server."""
NO_WORD: Final = bytes(STEERING.size)
"""The element of a server of which the sidecar has said nothing."""
FIRST: Final = bytes(4)
"""The key of the first element of an array, which is the only one of `clb_info` and `clb_home`."""
NEXT_AT: Final = VIRTUAL.offsets()["next"][0]
"""Where the link to the next virtual server is in an element of `clb_virtual`."""
_INDEX: Final = struct.Struct("=I")
_COOKIES: Final = struct.Struct(f"={BUCKET_PLACES}Q")
_GENERATION: Final = struct.Struct("=Q")
_SLOT: Final = struct.Struct("=18sH7I4H")
"""A slot, with address and port as they are together in the packed member."""
_SLOTS_SIZE: Final = ROW_SLOTS * SLOT.size


class Virtual(NamedTuple):
    """Decoded `struct clb_virtual`; the VIP stays packed, because packed VIPs are the keys of labels."""

    vip: bytes
    next: int
    generation: int
    row: int
    servers: int
    tier: int
    algorithm: int
    flags: int
    eject_after: int
    eject_first_ms: int
    eject_most_ms: int
    refusal: int
    silent_after_ms: int
    connect_timeout_ms: int
    dead_after_ms: int


class Slot(NamedTuple):
    """Decoded `struct clb_slot`, with the packed member in place of its address and port."""

    member: bytes
    rank: int
    server: int
    keep: int
    out_of: int
    alias: int
    first: int
    tier: int
    share: int
    weight: int
    priority: int
    part: int = 0
    zone: int = 0


class Server(NamedTuple):
    """Decoded `struct clb_server`."""

    connects: int
    ejected_until: int
    changed_at: int
    failures: int
    refused: int
    timed_out: int
    silent: int
    unreachable: int
    active: int
    began: int
    times_ejected: int
    in_row: int
    ejections: int
    probing: int
    cause: int
    suspect: int


class Steering(NamedTuple):
    """Decoded `struct clb_steering`; both are nanoseconds of CLOCK_MONOTONIC."""

    decided_at: int
    out_until: int


class ChangeKind(IntEnum):
    """CLB_CHANGE_* of bpf/clb.h."""

    SUSPECT = 1
    EJECTED = 2
    RETURNED = 3
    NEEDED = 4


class Change(NamedTuple):
    """Decoded `struct clb_change`."""

    time: int
    server: int
    began: int
    kind: int
    in_row: int
    cause: int


class Bucket(NamedTuple):
    """Decoded `struct clb_bucket`."""

    sockets: tuple[int, ...]
    crowded: int

    @property
    def cookies(self) -> list[int]:
        """The cookie of the socket in each place; 0 for none."""
        return [socket >> 1 for socket in self.sockets]


class Socket(NamedTuple):
    """Decoded `struct clb_socket`."""

    started: int
    member: bytes
    began: int
    server: int
    asked: bytes
    rank: int
    counts: int
    watched: int
    follows: int
    expired: int
    at: int
    connect_timeout_ms: int
    dead_after_ms: int
    repeats: int


class Event(NamedTuple):
    """Decoded `struct clb_event`."""

    time: int
    latency: int
    socket: int
    cgroup: int
    process: int
    kind: int
    cause: int
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


class Home(NamedTuple):
    """Decoded `struct clb_home`."""

    namespace: int
    known: int
    learner: int


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
    """Return a virtual server as it is in `clb_virtual`."""
    return VIRTUAL.struct.pack(*virtual)


def unpack_virtual(data: bytes) -> Virtual:
    """Parse an element of `clb_virtual`."""
    return Virtual(*VIRTUAL.struct.unpack(data))


def pack_place(generation: int, row: int) -> bytes:
    """Return the key of a row in `clb_overflow`."""
    return PLACE.struct.pack(generation, row)


def unpack_place(data: bytes) -> tuple[int, int]:
    """Return the generation and the row number of the key of a row in `clb_overflow`."""
    generation, row = PLACE.struct.unpack(data)
    return generation, row


def pack_slot(slot: Slot) -> bytes:
    """Return a slot as it is in its row."""
    return _SLOT.pack(slot[0][20:38], *slot[1:])


def pack_rows(generation: int, slots: Sequence[Slot]) -> list[bytes]:
    """Return the rows of a generation; the last one is padded with zeros."""
    # Positional, because pools are large: `pack_slot` takes a third longer.
    pack = _SLOT.pack
    packed = b"".join(
        [
            pack(member[20:38], rank, server, keep, out_of, alias, first, tier, share, weight, priority, part, zone)
            for member, rank, server, keep, out_of, alias, first, tier, share, weight, priority, part, zone in slots
        ]
    )
    head = _GENERATION.pack(generation)
    return [head + packed[at : at + _SLOTS_SIZE].ljust(_SLOTS_SIZE, b"\0") for at in range(0, len(packed), _SLOTS_SIZE)]


def rows(slots: int) -> int:
    """Return the number of rows for this many slots."""
    return -(-slots // ROW_SLOTS)


def unpack_row(vip: bytes, data: bytes) -> list[Slot]:
    """Parse the slots of a row, without the zero ones at its end.

    :param vip: the packed virtual server, which is part of all members.
    """
    start = _GENERATION.size
    used = -(-max(0, len(data.rstrip(b"\0")) - start) // SLOT.size)
    slots = _SLOT.iter_unpack(data[start : start + used * SLOT.size])
    make = Slot._make
    return [make((b"%b%b\0\0" % (vip, slot[0]), *slot[1:])) for slot in slots]


def generation_of(row: bytes) -> int:
    """Return the generation that a row belongs to."""
    (generation,) = _GENERATION.unpack_from(row)
    return int(generation)


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


def pack_home(home: Home) -> bytes:
    """Return the network namespace whose connects judge servers, as it is in `clb_home`."""
    return HOME.struct.pack(*home)


def unpack_home(data: bytes) -> Home:
    """Parse the element of `clb_home`."""
    return Home(*HOME.struct.unpack(data))


def unpack_server(data: bytes) -> Server:
    """Parse the counters and the health of a server."""
    return Server(*SERVER.struct.unpack(data))


def pack_steering(steering: Steering) -> bytes:
    """Return what the sidecar has found out about a server, as it is in `clb_steering`."""
    return STEERING.struct.pack(*steering)


def unpack_steering(data: bytes) -> Steering:
    """Parse what the sidecar has found out about a server."""
    return Steering(*STEERING.struct.unpack(data))


def unpack_change(data: bytes) -> Change:
    """Parse a record of a server that went out of service or came back."""
    return Change(*CHANGE.struct.unpack(data))


def unpack_bucket(data: bytes) -> Bucket:
    """Parse the owners of the records of a bucket."""
    sockets, crowded = BUCKET.struct.unpack(data)
    return Bucket(_COOKIES.unpack(sockets), crowded)


def unpack_socket(data: bytes) -> Socket:
    """Parse the record of a connected socket."""
    return Socket(*SOCKET.struct.unpack(data))


def unpack_event(data: bytes) -> Event:
    """Parse an event: the choice for a connect, or its outcome."""
    time, latency, socket, cgroup, process, kind, cause, member, command = EVENT.struct.unpack(data)
    return Event(time, latency, socket, cgroup, process, kind, cause, member, _untext(command))


def algorithm_of(number: int) -> Algorithm | None:
    """Return the scheduler with this number, or None if only a newer version knows it."""
    return Algorithm(number) if number in Algorithm.__members__.values() else None


def _text(text: str, size: int) -> bytes:
    return text.encode(errors="replace")[: size - 1].decode(errors="ignore").encode()


def _untext(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")
