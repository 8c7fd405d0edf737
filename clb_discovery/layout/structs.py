"""The mirror of bpf/clb.h: the binary layout of the elements of the maps.

The header is the contract and explains each field; a test compares this file with the BTF of the compiled object.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

LAYOUT: Final = 3
MAX_VIRTUAL_SERVERS: Final = 65536
VIRTUAL_ELEMENTS: Final = 81920
ROWS: Final = 16384
MAX_ROWS: Final = 131072
ROW_SLOTS: Final = 8
MAX_SERVERS: Final = 262144
BUCKET_PLACES: Final = 4
BUCKETS: Final = 16384
PLACES: Final = BUCKETS * BUCKET_PLACES
FILTER_BITS: Final = 18
FILTER_HIGH: Final = 0x9E3779B97F4A7C15
FILTER_LOW: Final = 0xD1342543DE82EF95
CHAIN_BITS: Final = 17
CHAIN: Final = 16
OVERFLOWS: Final = 0xFFFFFFFF
FEATURE_ERRNO: Final = 1
FEATURE_LOOP: Final = 2
FEATURE_OPTIONS: Final = 4
COUNT_ACTIVE: Final = 1
STEERED: Final = 2
SUSPECTS: Final = 4
LISTENS_EVENTS: Final = 0
LISTENS_CHANGES: Final = 1
LISTENERS: Final = 2
HOME_KNOWN: Final = 2**64 - 1
COUNT_RECORDS_LOST: Final = 0
COUNTS: Final = 16


class Map(StrEnum):
    """The maps, by the name of their pin."""

    FILTER = "clb_filter"
    CHAINS = "clb_chains"
    VIRTUAL = "clb_virtual"
    ROWS = "clb_rows"
    OVERFLOW = "clb_overflow"
    SERVERS = "clb_servers"
    STEERING = "clb_steering"
    LABELS = "clb_labels"
    INFO = "clb_info"
    HOME = "clb_home"
    DICE = "clb_dice"
    OWNERS = "clb_owners"
    PLACES = "clb_places"
    SOCKETS = "clb_sockets"
    PEERS = "clb_peers"
    LISTENER = "clb_listener"
    EVENTS = "clb_events"
    CHANGES = "clb_changes"
    COUNTS = "clb_counts"


ADDED: Final[frozenset[Map]] = frozenset()
"""Maps that a data plane of an earlier version lacks. They count as empty until `load` replaces that data plane."""


class Record:
    """One struct of the header: its fields in order, and the resulting packing."""

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
    ("vip", "20s"),
    ("next", "I"),
    ("generation", "Q"),
    ("row", "I"),
    ("servers", "I"),
    ("tier", "I"),
    ("algorithm", "H"),
    ("flags", "H"),
    ("eject_after", "I"),
    ("eject_first_ms", "I"),
    ("eject_most_ms", "I"),
    ("refusal", "I"),
    ("silent_after_ms", "I"),
    ("connect_timeout_ms", "I"),
    ("dead_after_ms", "I"),
    ("zero", "20x"),
)
PLACE: Final = Record("clb_place", ("generation", "Q"), ("row", "I"), ("zero", "4x"))
MEMBER: Final = Record("clb_member", ("vip", "20s"), ("address", "16s"), ("port", "2s"), ("zero", "2x"))
SLOT: Final = Record(
    "clb_slot",
    ("address", "16s"),
    ("port", "2s"),
    ("rank", "H"),
    ("server", "I"),
    ("keep", "I"),
    ("out_of", "I"),
    ("alias", "I"),
    ("first", "I"),
    ("tier", "I"),
    ("share", "I"),
    ("weight", "H"),
    ("priority", "H"),
    ("part", "H"),
    ("zone", "H"),
)
ROW: Final = Record("clb_row", ("generation", "Q"), ("slot", f"{ROW_SLOTS * SLOT.size}s"))
SERVER: Final = Record(
    "clb_server",
    ("connects", "Q"),
    ("ejected_until", "Q"),
    ("changed_at", "Q"),
    ("failures", "I"),
    ("refused", "I"),
    ("timed_out", "I"),
    ("silent", "I"),
    ("unreachable", "I"),
    ("active", "I"),
    ("began", "I"),
    ("times_ejected", "H"),
    ("in_row", "H"),
    ("ejections", "B"),
    ("probing", "B"),
    ("cause", "B"),
    ("suspect", "B"),
    ("lock", "4x"),
)
STEERING: Final = Record("clb_steering", ("decided_at", "Q"), ("out_until", "Q"), ("zero", "8x"))
CHANGE: Final = Record(
    "clb_change",
    ("time", "Q"),
    ("server", "I"),
    ("began", "I"),
    ("kind", "I"),
    ("in_row", "H"),
    ("cause", "B"),
    ("zero", "x"),
)
BUCKET: Final = Record(
    "clb_bucket", ("socket", f"{8 * BUCKET_PLACES}s"), ("crowded", "I"), ("lock", "4x"), ("zero", "24x")
)
SOCKET: Final = Record(
    "clb_socket",
    ("started", "Q"),
    ("member", "40s"),
    ("began", "I"),
    ("server", "I"),
    ("asked", "2s"),
    ("rank", "H"),
    ("counts", "B"),
    ("watched", "B"),
    ("follows", "B"),
    ("expired", "B"),
    ("at", "I"),
    ("connect_timeout_ms", "I"),
    ("dead_after_ms", "I"),
    ("repeats", "B"),
    ("zero", "3x"),
)
STORED: Final = Record("clb_stored", ("socket", "Q"), ("zero", "4x"), ("lock", "4x"), ("record", f"{SOCKET.size}s"))
EVENT: Final = Record(
    "clb_event",
    ("time", "Q"),
    ("latency", "Q"),
    ("socket", "Q"),
    ("cgroup", "Q"),
    ("process", "I"),
    ("kind", "I"),
    ("cause", "I"),
    ("zero", "4x"),
    ("member", "40s"),
    ("command", "16s"),
)
LABEL: Final = Record("clb_label", ("service", "256s"), ("source", "272s"))
INFO: Final = Record(
    "clb_info", ("layout", "I"), ("features", "I"), ("loader", "16s"), ("build", "72s"), ("cgroup", "1024s")
)
HOME: Final = Record("clb_home", ("namespace", "Q"), ("known", "Q"), ("learner", "Q"))
RECORDS: Final = (
    VIP,
    VIRTUAL,
    PLACE,
    MEMBER,
    SLOT,
    ROW,
    SERVER,
    STEERING,
    CHANGE,
    BUCKET,
    SOCKET,
    STORED,
    EVENT,
    LABEL,
    INFO,
    HOME,
)
PEERS_SIZE: Final = 248
EVENTS_BYTES: Final = 262144
CHANGES_BYTES: Final = 65536
SIZES: Final = {
    Map.FILTER: (4, 8),
    Map.CHAINS: (4, 4),
    Map.VIRTUAL: (4, VIRTUAL.size),
    Map.ROWS: (4, ROW.size),
    Map.OVERFLOW: (PLACE.size, ROW.size),
    Map.SERVERS: (4, SERVER.size),
    Map.STEERING: (4, STEERING.size),
    Map.LABELS: (VIP.size, LABEL.size),
    Map.INFO: (4, INFO.size),
    Map.HOME: (4, HOME.size),
    Map.DICE: (4, 8),
    Map.OWNERS: (4, BUCKET.size),
    Map.PLACES: (4, SOCKET.size),
    Map.SOCKETS: (4, STORED.size),
    Map.PEERS: (4, PEERS_SIZE),
    Map.LISTENER: (4, 8),
    Map.EVENTS: (0, 0),
    Map.CHANGES: (0, 0),
    Map.COUNTS: (4, 8),
}
"""Key and value size of each map, in bytes; of `clb_dice`, for each CPU."""
