"""The mirror of bpf/clb.h: what the elements of the maps look like as bytes.

The header is the contract and says what each field means; a test compares this file with the compiled object's BTF.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from clb_discovery.core.address import Address
from clb_discovery.core.model import Algorithm, Protocol, RealServer, Vip

LAYOUT: Final = 1
MAX_VIRTUAL_SERVERS: Final = 65536
MAX_ROWS: Final = 262144
ROW_SLOTS: Final = 8
MAX_SERVERS: Final = 262144
PLACES: Final = 16384
FILTER_BITS: Final = 18
FILTER_HIGH: Final = 0x9E3779B97F4A7C15
FILTER_LOW: Final = 0xD1342543DE82EF95
FEATURE_ERRNO: Final = 1
FEATURE_LOOP: Final = 2
COUNT_ACTIVE: Final = 1
COUNT_RECORDS_LOST: Final = 0
COUNTS: Final = 16


class Map(StrEnum):
    """The maps, by the name of their pin."""

    FILTER = "clb_filter"
    VIRTUAL = "clb_virtual"
    ROWS = "clb_rows"
    SERVERS = "clb_servers"
    LABELS = "clb_labels"
    INFO = "clb_info"
    DICE = "clb_dice"
    OWNERS = "clb_owners"
    PLACES = "clb_places"
    SOCKETS = "clb_sockets"
    PEERS = "clb_peers"
    LISTENER = "clb_listener"
    EVENTS = "clb_events"
    COUNTS = "clb_counts"


ADDED: Final = frozenset({Map.COUNTS})
"""Maps that an earlier version of this layout has not: until its data plane is loaded again they count as empty."""


class Record:
    """One struct of the header: its fields in order, and the packing that follows from them."""

    def __init__(self, name: str, *fields: tuple[str, str]) -> None:
        """Describe a struct.

        :param fields: name and struct-module format of each field. Fields in network byte order and nested structs
            are byte strings, "16s"; everything else is in the host's byte order; "x" is padding.
        """
        self.name = name
        self.fields = fields
        self.struct = struct.Struct("=" + "".join(form for _, form in fields))
        self.size = self.struct.size

    def offsets(self) -> dict[str, tuple[int, int]]:
        """Return offset and size of each field, in bytes."""
        placed = {}
        offset = 0
        for name, form in self.fields:
            size = struct.calcsize("=" + form)
            placed[name] = (offset, size)
            offset += size
        return placed


VIP: Final = Record("clb_vip", ("address", "16s"), ("port", "2s"), ("protocol", "B"), ("zero", "x"))
VIRTUAL: Final = Record(
    "clb_virtual",
    ("generation", "Q"),
    ("servers", "I"),
    ("tier", "I"),
    ("algorithm", "H"),
    ("flags", "H"),
    ("eject_after", "I"),
    ("eject_first_ms", "I"),
    ("eject_most_ms", "I"),
    ("refusal", "I"),
    ("zero", "4x"),
)
PLACE: Final = Record("clb_place", ("generation", "Q"), ("row", "I"), ("zero", "4x"))
MEMBER: Final = Record("clb_member", ("vip", "20s"), ("address", "16s"), ("port", "2s"), ("zero", "2x"))
SLOT: Final = Record(
    "clb_slot",
    ("member", "40s"),
    ("keep", "I"),
    ("out_of", "I"),
    ("alias", "I"),
    ("first", "I"),
    ("tier", "I"),
    ("weight", "H"),
    ("priority", "H"),
    ("server", "I"),
    ("zero", "4x"),
)
ROW: Final = Record("clb_row", ("slot", f"{ROW_SLOTS * SLOT.size}s"))
SERVER: Final = Record(
    "clb_server",
    ("connects", "Q"),
    ("failures", "Q"),
    ("ejected_until", "Q"),
    ("recovered_at", "Q"),
    ("began", "Q"),
    ("active", "I"),
    ("in_row", "I"),
    ("ejections", "I"),
    ("probing", "I"),
    ("lock", "4x"),
    ("times_ejected", "I"),
)
OWNER: Final = Record("clb_owner", ("socket", "Q"), ("crowded", "I"), ("lock", "4x"))
SOCKET: Final = Record(
    "clb_socket",
    ("began", "Q"),
    ("started", "Q"),
    ("server", "I"),
    ("asked", "2s"),
    ("priority", "H"),
    ("counts", "B"),
    ("watched", "B"),
    ("zero", "6x"),
    ("member", "40s"),
)
STORED: Final = Record("clb_stored", ("socket", "Q"), ("crowded", "I"), ("lock", "4x"), ("record", "72s"))
EVENT: Final = Record(
    "clb_event",
    ("time", "Q"),
    ("latency", "Q"),
    ("socket", "Q"),
    ("cgroup", "Q"),
    ("process", "I"),
    ("kind", "I"),
    ("member", "40s"),
    ("command", "16s"),
)
LABEL: Final = Record("clb_label", ("service", "256s"), ("source", "272s"))
INFO: Final = Record(
    "clb_info", ("layout", "I"), ("features", "I"), ("loader", "16s"), ("build", "72s"), ("cgroup", "1024s")
)
RECORDS: Final = (VIP, VIRTUAL, PLACE, MEMBER, SLOT, ROW, SERVER, OWNER, SOCKET, STORED, EVENT, LABEL, INFO)

PEERS_SIZE: Final = 264
EVENTS_BYTES: Final = 262144
SIZES: Final = {
    Map.FILTER: (4, 8),
    Map.VIRTUAL: (VIP.size, VIRTUAL.size),
    Map.ROWS: (PLACE.size, ROW.size),
    Map.SERVERS: (4, SERVER.size),
    Map.LABELS: (VIP.size, LABEL.size),
    Map.INFO: (4, INFO.size),
    Map.DICE: (4, 8),
    Map.OWNERS: (4, OWNER.size),
    Map.PLACES: (4, SOCKET.size),
    Map.SOCKETS: (4, STORED.size),
    Map.PEERS: (4, PEERS_SIZE),
    Map.LISTENER: (4, 8),
    Map.EVENTS: (0, 0),
    Map.COUNTS: (4, 8),
}
"""Key and value size of each map, in bytes; of `clb_dice`, for each CPU."""

NEW_SERVER: Final = bytes(SERVER.size)
"""What the element of a new server holds, and one that stands for no server."""

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
    """Decoded `struct clb_slot`; the member stays bytes, since that is what members are told apart by."""

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
        """The socket's cookie; 0: nobody's."""
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
    """Read the key of a virtual server.

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
    """Read the published state of a virtual server."""
    return Virtual(*VIRTUAL.struct.unpack(data))


def pack_place(generation: int, row: int) -> bytes:
    """Return the key of a row of slots."""
    return PLACE.struct.pack(generation, row)


def unpack_place(data: bytes) -> tuple[int, int]:
    """Return generation and row of a row's key."""
    generation, row = PLACE.struct.unpack(data)
    return generation, row


def pack_slot(slot: Slot) -> bytes:
    """Return a slot as it stands in its row."""
    return SLOT.struct.pack(*slot)


def pack_rows(slots: Sequence[Slot]) -> list[bytes]:
    """Return the rows of a generation; the last one is filled up with zero."""
    packed = b"".join(map(pack_slot, slots))
    return [packed[at : at + ROW.size].ljust(ROW.size, b"\0") for at in range(0, len(packed), ROW.size)]


def rows(slots: int) -> int:
    """Return in how many rows so many slots are."""
    return -(-slots // ROW_SLOTS)


def unpack_row(data: bytes) -> list[Slot]:
    """Read the slots of a row, without those that are zero at its end."""
    slots = [Slot(*values) for values in SLOT.struct.iter_unpack(data)]
    while slots and slots[-1] == _NO_SLOT:
        slots.pop()
    return slots


def pack_index(index: int) -> bytes:
    """Return the key of an element of an array."""
    return _INDEX.pack(index)


def unpack_index(data: bytes) -> int:
    """Read the key of an element of an array."""
    (index,) = _INDEX.unpack(data)
    return int(index)


def pack_label(label: Label) -> bytes:
    """Return the names of a virtual server; what does not fit is cut at a character."""
    return LABEL.struct.pack(_text(label.service, 256), _text(label.source, 272))


def unpack_label(data: bytes) -> Label:
    """Read the names of a virtual server."""
    service, source = LABEL.struct.unpack(data)
    return Label(_untext(service), _untext(source))


def pack_info(info: Info) -> bytes:
    """Return what the loader tells about itself."""
    return INFO.struct.pack(
        info.layout, info.features, _text(info.loader, 16), _text(info.build, 72), _text(info.cgroup, 1024)
    )


def unpack_info(data: bytes) -> Info:
    """Read what the loader told about itself."""
    layout, features, loader, build, cgroup = INFO.struct.unpack(data)
    return Info(layout, features, _untext(loader), _untext(build), _untext(cgroup))


def unpack_server(data: bytes) -> Server:
    """Read what became of connects to a server."""
    return Server(*SERVER.struct.unpack(data))


def unpack_owner(data: bytes) -> Owner:
    """Read whose a record is."""
    return Owner(*OWNER.struct.unpack(data))


def unpack_socket(data: bytes) -> Socket:
    """Read the record of a connected socket."""
    return Socket(*SOCKET.struct.unpack(data))


def unpack_event(data: bytes) -> Event:
    """Read a decision or an outcome."""
    time, latency, socket, cgroup, process, kind, member, command = EVENT.struct.unpack(data)
    return Event(time, latency, socket, cgroup, process, kind, member, _untext(command))


def algorithm_of(number: int) -> Algorithm | None:
    """Return the scheduler with this number, or None for one of a newer version."""
    return Algorithm(number) if number in Algorithm.__members__.values() else None


def _text(text: str, size: int) -> bytes:
    return text.encode(errors="replace")[: size - 1].decode(errors="ignore").encode()


def _untext(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")
