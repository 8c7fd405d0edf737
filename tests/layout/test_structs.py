"""The mirror of bpf/clb.h: byte by byte, and against the type information of both compiled objects."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.documents.causes import Cause
from clb_discovery.documents.trace import Kind
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import (
    Bucket,
    Change,
    ChangeKind,
    Event,
    Home,
    Info,
    Label,
    Server,
    Slot,
    Steering,
    Virtual,
)
from clb_discovery.layout.structs import Map, Record
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Algorithm, Protocol, RealServer, Vip
from tests.support.btf import Btf, Struct
from tests.support.elf import section
from tests.support.strategies import REAL_SERVER, VIP

ROOT: Final = Path(__file__).parents[2]
HEADER: Final = ROOT / "bpf" / "clb.h"
OBJECTS: Final = tuple(
    ROOT / "clb_discovery" / "_bpf" / name for name in ("clb.bpf.o", "clb-no-btf.bpf.o", "clb-floor.bpf.o")
)
UNMIRRORED: Final = {"clb_peer", "clb_peers"}
"""Structs that only the programs read and write."""

MAPPED: Final = Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP)
PLAIN: Final = Vip(parse_address("fd00:64::1"), 53, Protocol.UDP)
MAPPED_BYTES: Final = bytes.fromhex("00000000 00000000 0000ffff 0a400001 18eb 06 00")
PLAIN_BYTES: Final = bytes.fromhex("fd000064 00000000 00000000 00000001 0035 11 00")
SERVER: Final = RealServer(2, parse_address("10.0.0.7"), 31001, 10)
MEMBER_BYTES: Final = MAPPED_BYTES + bytes.fromhex("00000000 00000000 0000ffff 0a000007 7919 0000")

BPF_MAP_TYPE_HASH: Final = 1
BPF_MAP_TYPE_ARRAY: Final = 2
BPF_MAP_TYPE_SK_STORAGE: Final = 24
BPF_MAP_TYPE_RINGBUF: Final = 27

U16: Final = st.integers(0, 2**16 - 1)
U32: Final = st.integers(0, 2**32 - 1)
U64: Final = st.integers(0, 2**64 - 1)
TEXT: Final = st.text(st.characters(exclude_characters="\0", codec="utf-8"))


def host(size: int, *numbers: int) -> bytes:
    """Return numbers of this many bytes each in the byte order of the host."""
    return b"".join(number.to_bytes(size, sys.byteorder) for number in numbers)


def fitting(size: int) -> st.SearchStrategy[str]:
    """Return texts that fit a field of this size with its NUL."""
    return TEXT.filter(lambda text: len(text.encode()) < size)


def differences(record: Record, compiled: Struct) -> list[str]:
    """Return the differences between the mirror of a struct and the compiled struct."""
    mirror = {(name, *place) for name, place in record.offsets().items()}
    wrong = sorted(mirror ^ {tuple(field) for field in compiled.fields})
    found = [f"{record.name}.{name} at {offset}, {size} bytes" for name, offset, size in wrong]
    if record.size != compiled.size:
        found.append(f"{record.name} has {record.size} bytes here and {compiled.size} there")
    return found


@pytest.fixture(scope="module", params=OBJECTS, ids=lambda path: str(path.name))
def btf(request: pytest.FixtureRequest) -> Btf:
    """Read the type information of each compiled object."""
    path: Path = request.param
    assert path.exists(), "the object is not built; run: make build"
    return Btf(section(path.read_bytes(), ".BTF"))


def test_the_examples_of_the_header() -> None:
    """The two example addresses of the header give the keys that it shows."""
    assert elements.pack_vip(MAPPED) == MAPPED_BYTES
    assert elements.pack_vip(MAPPED._replace(address=parse_address("::ffff:10.64.0.1"))) == MAPPED_BYTES
    assert elements.pack_vip(PLAIN) == PLAIN_BYTES
    assert elements.pack_vip(MAPPED._replace(port=0))[16:] == bytes.fromhex("0000 06 00")


def test_a_virtual_server_in_bytes() -> None:
    """VIP and link, generation, rows, servers, tier, scheduler and flags, ejection, the refusal, silence, limits."""
    virtual = Virtual(
        vip=MAPPED_BYTES,
        next=80_000,
        generation=0x0102030405060708,
        row=structs.OVERFLOWS,
        servers=3,
        tier=2,
        algorithm=Algorithm.LEAST_CONN,
        flags=structs.COUNT_ACTIVE,
        eject_after=4,
        eject_first_ms=5_000,
        eject_most_ms=60_000,
        refusal=70_000,
        silent_after_ms=200,
        connect_timeout_ms=5_000,
        dead_after_ms=15_000,
    )
    numbers = (
        host(4, 2**32 - 1, 3, 2) + host(2, 2, 1) + host(4, 4, 5_000, 60_000, 70_000, 200, 5_000, 15_000) + bytes(20)
    )
    packed = elements.pack_virtual(virtual)
    assert packed == MAPPED_BYTES + host(4, 80_000) + host(8, 0x0102030405060708) + numbers
    assert packed[elements.NEXT_AT :][:4] == host(4, 80_000)


def test_a_place_in_bytes() -> None:
    """Generation and row, then padding."""
    assert elements.pack_place(5, 70000) == host(8, 5) + host(4, 70000, 0)


def test_a_member_in_bytes() -> None:
    """The virtual server's key, then the address and port in network byte order, then padding."""
    assert elements.pack_member(MAPPED_BYTES, SERVER) == MEMBER_BYTES


def test_the_refusal_in_bytes() -> None:
    """The virtual server's key, and nothing but zeros."""
    assert elements.refusal(PLAIN_BYTES) == PLAIN_BYTES + bytes(20)


def test_a_slot_in_bytes() -> None:
    """Address and port, tier, index of the server, its column of the alias table, and its weights."""
    slot = Slot(
        MEMBER_BYTES,
        rank=1,
        server=70_000,
        keep=2,
        out_of=4,
        alias=6,
        first=5,
        tier=3,
        share=9,
        weight=10,
        priority=7,
        part=11,
        zone=12,
    )
    numbers = host(2, 1) + host(4, 70_000, 2, 4, 6, 5, 3, 9) + host(2, 10, 7, 11, 12)
    assert elements.pack_slot(slot) == MEMBER_BYTES[20:38] + numbers


def test_an_index_in_bytes() -> None:
    """A number of four bytes."""
    assert elements.pack_index(70_000) == host(4, 70_000)


def test_a_server_in_bytes() -> None:
    """Connects and times, failures by cause, what is active, then what only a failure changes; the lock is skipped."""
    data = host(8, 9, 7, 6) + host(4, 8, 11, 12, 13, 14, 5, 10) + host(2, 2, 4) + b"\3\1\3\1" + b"\xff" * 4
    found = elements.unpack_server(data)
    assert found == Server(
        connects=9,
        failures=8,
        ejected_until=7,
        changed_at=6,
        began=10,
        active=5,
        in_row=4,
        ejections=3,
        probing=1,
        cause=3,
        suspect=1,
        times_ejected=2,
        refused=11,
        timed_out=12,
        silent=13,
        unreachable=14,
    )
    assert elements.unpack_server(elements.NEW_SERVER) == Server(*[0] * 16)


def test_what_the_sidecar_says_of_a_server_in_bytes() -> None:
    """Two times, then room."""
    packed = host(8, 9, 8) + bytes(8)
    assert elements.pack_steering(Steering(decided_at=9, out_until=8)) == packed
    assert elements.unpack_steering(packed) == Steering(decided_at=9, out_until=8)


def test_a_change_of_a_server_in_bytes() -> None:
    """The time and the server, then what has happened to it."""
    data = host(8, 9) + host(4, 8, 7, ChangeKind.EJECTED) + host(2, 3) + b"\4\0"
    assert elements.unpack_change(data) == Change(time=9, server=8, began=7, kind=2, in_row=3, cause=4)


def test_an_event_in_bytes() -> None:
    """Times and identities, then the kind and the member, and the command up to its NUL."""
    data = host(8, 9, 8, 7, 6) + host(4, 5, Kind.EJECTED, 3, 0) + MEMBER_BYTES + b"redis-cli\0junk\0\0"
    assert elements.unpack_event(data) == Event(
        time=9, latency=8, socket=7, cgroup=6, process=5, kind=6, cause=3, member=MEMBER_BYTES, command="redis-cli"
    )


@given(st.binary(min_size=104, max_size=104))
def test_any_bytes_can_be_read_as_an_event(data: bytes) -> None:
    """A command can have any bytes, because processes choose it themselves."""
    assert "\0" not in elements.unpack_event(data).command


def test_a_label_in_bytes() -> None:
    """Two texts, each padded with NUL to its size."""
    data = elements.pack_label(Label("größe", "srv:_redis._tcp.example"))
    assert data == b"gr\xc3\xb6\xc3\x9fe".ljust(256, b"\0") + b"srv:_redis._tcp.example".ljust(272, b"\0")


def test_what_was_loaded_in_bytes() -> None:
    """Layout and features, then three texts padded with NUL to their sizes."""
    data = elements.pack_info(Info(1, structs.FEATURE_ERRNO, "object", "ab" * 32, "/sys/fs/cgroup"))
    texts = b"object".ljust(16, b"\0") + (b"ab" * 32).ljust(72, b"\0") + b"/sys/fs/cgroup".ljust(1024, b"\0")
    assert data == host(4, 1, 1) + texts


@given(VIP)
def test_a_vip_reads_back(vip: Vip) -> None:
    """Every key is 20 bytes and is read as the virtual server that it was written for."""
    data = elements.pack_vip(vip)
    assert len(data) == structs.VIP.size
    assert elements.unpack_vip(data) == vip


@given(VIP, REAL_SERVER)
def test_a_member_reads_back(vip: Vip, server: RealServer) -> None:
    """A member gives its virtual server, address and port, and is no refusal."""
    key = elements.pack_vip(vip)
    member = elements.pack_member(key, server)
    assert elements.unpack_member(member) == (key, server.address, server.port)
    assert not elements.is_refusal(member)
    assert elements.is_refusal(elements.refusal(key))
    assert elements.unpack_member(elements.refusal(key)) == (key, Address(bytes(16)), 0)


@given(st.builds(Virtual, st.binary(min_size=20, max_size=20), U32, U64, *[U32] * 3, U16, U16, *[U32] * 7))
def test_a_virtual_server_reads_back(virtual: Virtual) -> None:
    """All values of all fields survive."""
    assert elements.unpack_virtual(elements.pack_virtual(virtual)) == virtual


@given(U64, U32)
def test_a_place_reads_back(generation: int, row: int) -> None:
    """All values of all fields survive."""
    assert elements.unpack_place(elements.pack_place(generation, row)) == (generation, row)


SLOTS: Final = st.builds(
    Slot,
    st.binary(min_size=18, max_size=18).map(lambda endpoint: MAPPED_BYTES + endpoint + bytes(2)),
    U16,
    *[U32] * 7,
    *[U16] * 4,
)


@given(U64, st.lists(SLOTS.filter(lambda slot: any(elements.pack_slot(slot))), min_size=1, max_size=20))
def test_rows_read_back(generation: int, slots: list[Slot]) -> None:
    """All values of all fields survive, in order; all rows are full except the last, which is padded with zeros."""
    rows = elements.pack_rows(generation, slots)
    assert {len(row) for row in rows} == {structs.ROW.size}
    assert {elements.generation_of(row) for row in rows} == {generation}
    assert [slot for row in rows for slot in elements.unpack_row(MAPPED_BYTES, row)] == slots
    assert [len(elements.unpack_row(MAPPED_BYTES, row)) for row in rows[:-1]] == [8] * (len(rows) - 1)
    packed = b"".join(row.removeprefix(host(8, generation)) for row in rows)
    assert packed == b"".join(map(elements.pack_slot, slots)).ljust(len(rows) * 448, b"\0")


def test_a_bucket_in_bytes() -> None:
    """Four sockets, each twice its cookie and one bit, then the number of those that found it full."""
    bucket = elements.unpack_bucket(host(8, 10, 0, 7, 2**63) + host(4, 2) + b"\xff" * 4 + bytes(24))
    assert bucket == Bucket((10, 0, 7, 2**63), 2)
    assert bucket.cookies == [5, 0, 3, 2**62]


def test_a_record_in_bytes() -> None:
    """The start, the member, the server, what was asked, what is known of its end, its limits; the rest is room."""
    numbers = host(4, 9, 7) + b"\x18\xeb" + host(2, 1) + bytes([1, 0, 5, 1]) + host(4, 6, 200, 3_000) + bytes([6])
    data = host(8, 8) + MEMBER_BYTES + numbers + bytes(3)
    assert elements.unpack_socket(data) == elements.Socket(
        started=8,
        member=MEMBER_BYTES,
        began=9,
        server=7,
        asked=b"\x18\xeb",
        rank=1,
        counts=1,
        watched=0,
        follows=5,
        expired=1,
        at=6,
        connect_timeout_ms=200,
        dead_after_ms=3_000,
        repeats=6,
    )


@given(U32)
def test_an_index_reads_back(index: int) -> None:
    """All values survive."""
    assert elements.unpack_index(elements.pack_index(index)) == index


@given(st.builds(Label, fitting(256), fitting(272)))
def test_a_label_reads_back(label: Label) -> None:
    """Texts that fit survive."""
    assert elements.unpack_label(elements.pack_label(label)) == label


@given(st.builds(Info, U32, U32, fitting(16), fitting(72), fitting(1024)))
def test_what_was_loaded_reads_back(info: Info) -> None:
    """Numbers, and texts that fit, survive."""
    assert elements.unpack_info(elements.pack_info(info)) == info


def test_home_in_bytes() -> None:
    """The namespace, whether it is known, then the socket to learn it from."""
    home = Home(0x0102030405060708, structs.HOME_KNOWN, 9)
    assert elements.pack_home(home) == host(8, 0x0102030405060708, 2**64 - 1, 9)
    assert elements.unpack_home(elements.pack_home(home)) == home


@given(st.text(), st.text(min_size=300))
def test_any_text_can_be_written(service: str, source: str) -> None:
    """A text that is too long is cut between characters, and a text that was cut is not cut further."""
    data = elements.pack_label(Label(service, source))
    assert len(data) == structs.LABEL.size
    assert data[255] == data[-1] == 0
    label = elements.unpack_label(data)
    assert "\ufffd" not in label.service or "\ufffd" in service
    assert source.encode().startswith(label.source.encode())
    assert elements.pack_label(label) == elements.pack_label(elements.unpack_label(elements.pack_label(label)))


def test_half_of_a_surrogate_pair_can_be_written() -> None:
    """JSON can contain characters that UTF-8 cannot; each is replaced by a mark."""
    assert elements.unpack_label(elements.pack_label(Label("a\ud800b", ""))).service == "a?b"


@given(st.binary(min_size=528, max_size=528))
def test_any_bytes_can_be_read_as_a_label(data: bytes) -> None:
    """Arbitrary bytes are no error, and end at the first NUL."""
    label = elements.unpack_label(data)
    assert "\0" not in label.service + label.source


def test_an_unknown_scheduler_is_none() -> None:
    """A number of a newer version is recognized as unknown."""
    assert [elements.algorithm_of(number) for number in range(4)] == [*Algorithm, None]
    assert elements.algorithm_of(2**32 - 1) is None


def test_an_unknown_protocol_is_an_error() -> None:
    """A key with an unknown protocol is an error."""
    with pytest.raises(ValueError, match="132"):
        elements.unpack_vip(MAPPED_BYTES[:18] + bytes([132, 0]))


@pytest.mark.parametrize("record", structs.RECORDS, ids=lambda record: str(record.name))
def test_the_mirror_is_what_the_compiler_made_of_the_header(btf: Btf, record: Record) -> None:
    """Size of each struct, and name, offset and size of each of its fields, padding included."""
    assert differences(record, btf.struct(record.name)) == []


@pytest.mark.parametrize("map_", Map)
def test_keys_and_values_have_the_sizes_of_the_maps(btf: Btf, map_: Map) -> None:
    """Packed elements have exactly the declared sizes of the map."""
    definition = btf.map(map_)
    assert (definition.key_size, definition.value_size) == structs.SIZES[map_]


@pytest.mark.parametrize(
    ("map_", "limit"),
    [
        (Map.FILTER, 2**structs.FILTER_BITS // 64),
        (Map.CHAINS, 2**structs.CHAIN_BITS),
        (Map.VIRTUAL, structs.VIRTUAL_ELEMENTS),
        (Map.LABELS, structs.MAX_VIRTUAL_SERVERS),
        (Map.ROWS, structs.ROWS),
        (Map.OVERFLOW, structs.MAX_ROWS),
        (Map.SERVERS, structs.MAX_SERVERS),
        (Map.OWNERS, structs.BUCKETS),
        (Map.PLACES, structs.BUCKETS * structs.BUCKET_PLACES),
        (Map.HOME, 1),
        (Map.DICE, 1),
        (Map.INFO, 1),
        (Map.STEERING, structs.MAX_SERVERS),
        (Map.LISTENER, structs.LISTENERS),
        (Map.EVENTS, structs.EVENTS_BYTES),
        (Map.CHANGES, structs.CHANGES_BYTES),
        (Map.COUNTS, structs.COUNTS),
    ],
)
def test_maps_hold_as_many_elements_as_the_mirror_says(btf: Btf, map_: Map, limit: int) -> None:
    """The limits that plans use are those that the kernel enforces."""
    assert btf.map(map_).max_entries == limit


def test_the_maps_are_those_of_the_mirror(btf: Btf) -> None:
    """A new map of the objects must be in the mirror."""
    assert btf.maps() == set(Map)


@pytest.mark.parametrize(
    ("map_", "kind"),
    [
        (Map.FILTER, BPF_MAP_TYPE_ARRAY),
        (Map.CHAINS, BPF_MAP_TYPE_ARRAY),
        (Map.VIRTUAL, BPF_MAP_TYPE_ARRAY),
        (Map.ROWS, BPF_MAP_TYPE_ARRAY),
        (Map.OVERFLOW, BPF_MAP_TYPE_HASH),
        (Map.SERVERS, BPF_MAP_TYPE_ARRAY),
        (Map.OWNERS, BPF_MAP_TYPE_ARRAY),
        (Map.PLACES, BPF_MAP_TYPE_ARRAY),
        (Map.SOCKETS, BPF_MAP_TYPE_SK_STORAGE),
        (Map.PEERS, BPF_MAP_TYPE_SK_STORAGE),
        (Map.EVENTS, BPF_MAP_TYPE_RINGBUF),
        (Map.CHANGES, BPF_MAP_TYPE_RINGBUF),
    ],
)
def test_maps_are_of_their_kind(btf: Btf, map_: Map, kind: int) -> None:
    """Virtual servers, rows, servers and places are arrays; all other data of a socket is in its storage."""
    assert btf.map(map_).kind == kind


NUMBERS: Final = {
    "LAYOUT": structs.LAYOUT,
    "MAX_VIRTUAL_SERVERS": structs.MAX_VIRTUAL_SERVERS,
    "VIRTUAL": structs.VIRTUAL_ELEMENTS,
    "ROWS": structs.ROWS,
    "MAX_ROWS": structs.MAX_ROWS,
    "OVERFLOWS": structs.OVERFLOWS,
    "ROW": structs.ROW_SLOTS,
    "MAX_SERVERS": structs.MAX_SERVERS,
    "BUCKET": structs.BUCKET_PLACES,
    "BUCKETS": structs.BUCKETS,
    "CHAIN_BITS": structs.CHAIN_BITS,
    "CHAIN": structs.CHAIN,
    "FILTER_BITS": structs.FILTER_BITS,
    "FILTER_HIGH": structs.FILTER_HIGH,
    "FILTER_LOW": structs.FILTER_LOW,
    "EVENTS_BYTES": structs.EVENTS_BYTES,
    "CHANGES_BYTES": structs.CHANGES_BYTES,
    "LISTENS_EVENTS": structs.LISTENS_EVENTS,
    "LISTENS_CHANGES": structs.LISTENS_CHANGES,
    "LISTENERS": structs.LISTENERS,
    "STEERED": structs.STEERED,
    "SUSPECTS": structs.SUSPECTS,
    "COUNT_ACTIVE": structs.COUNT_ACTIVE,
    "HOME_KNOWN": structs.HOME_KNOWN,
    "COUNT_RECORDS_LOST": structs.COUNT_RECORDS_LOST,
    "COUNTS": structs.COUNTS,
    "FEATURE_ERRNO": structs.FEATURE_ERRNO,
    "FEATURE_LOOP": structs.FEATURE_LOOP,
    "FEATURE_OPTIONS": structs.FEATURE_OPTIONS,
    **{algorithm.name: algorithm.value for algorithm in Algorithm},
    **{f"EVENT_{kind.name}": kind.value for kind in Kind},
    **{f"CHANGE_{kind.name}": kind.value for kind in elements.ChangeKind},
    **{f"CAUSE_{cause.name}": cause.value for cause in Cause},
}


@pytest.mark.parametrize(("name", "value"), NUMBERS.items())
def test_numbers_are_those_of_the_header(name: str, value: int) -> None:
    """Constants are not in the object, so they are compared with the text of the header."""
    found = re.findall(rf"^#define CLB_{name} (0x[0-9a-f]+|\d+)(?:ULL)?\b", HEADER.read_text(), re.MULTILINE)
    assert [int(number, 0) for number in found] == [value]


def test_every_number_of_the_header_is_compared() -> None:
    """A new constant of the header must be in the mirror."""
    found = set(re.findall(r"^#define CLB_(\w+)[ \t]+\S", HEADER.read_text(), re.MULTILINE))
    assert found == NUMBERS.keys() | {"PEERS", "PLACES", "CAUSE_NONE", "CAUSE_UNKNOWN"}


def test_every_struct_of_the_header_is_compared() -> None:
    """A new struct of the header must be in the mirror."""
    found = re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)
    assert sorted(found) == sorted({record.name for record in structs.RECORDS} | UNMIRRORED)


@pytest.mark.parametrize("record", structs.RECORDS, ids=lambda record: str(record.name))
def test_padding_and_locks_are_never_values(record: Record) -> None:
    """Fields named zero, room or lock are skipped when reading and zero when writing; no other fields are."""
    assert [name for name, form in record.fields if form.endswith("x")] == [
        name for name, _ in record.fields if name in {"zero", "room", "lock"}
    ]


@pytest.mark.parametrize(
    ("record", "decoded"),
    [(structs.VIRTUAL, Virtual), (structs.SLOT, Slot), (structs.SERVER, Server), (structs.SOCKET, elements.Socket),
     (structs.EVENT, Event), (structs.LABEL, Label), (structs.INFO, Info), (structs.HOME, Home)],
    ids=lambda one: str(getattr(one, "name", getattr(one, "__name__", one))),
)  # fmt: skip
def test_decoded_fields_have_the_names_of_the_header(record: Record, decoded: type[NamedTuple]) -> None:
    """Decoded fields have the names of the header, in the same order; slots have the member for address and port."""
    names = [name for name, form in record.fields if not form.endswith("x")]
    assert list(decoded._fields) == (["member", *names[2:]] if decoded is Slot else names)


@pytest.mark.parametrize("record", structs.RECORDS, ids=lambda record: str(record.name))
def test_a_shifted_field_is_noticed(btf: Btf, record: Record) -> None:
    """Swapping, widening, renaming or removing any field of the mirror is detected."""
    compiled = btf.struct(record.name)
    fields = list(record.fields)
    for at, (name, form) in enumerate(fields):
        changes = [
            [*fields[:at], *fields[at + 1 :]],
            [*fields[:at], (name, form), ("more", "x"), *fields[at + 1 :]],
            [*fields[:at], ("other", form), *fields[at + 1 :]],
            [*fields[:at], (name, f"{struct.calcsize('=' + form) + 1}s"), *fields[at + 1 :]],
        ]
        if at:
            changes.append([*fields[: at - 1], fields[at], fields[at - 1], *fields[at + 1 :]])
        for changed in changes:
            assert differences(Record(record.name, *changed), compiled)


def test_a_struct_that_is_not_there_is_an_error(btf: Btf) -> None:
    """A lookup of an unknown struct or map is an error, not an empty result."""
    with pytest.raises(KeyError):
        btf.struct("clb_nothing")
    with pytest.raises(KeyError):
        btf.map("clb_nothing")


def test_what_is_no_object_is_an_error() -> None:
    """Bytes that are not ELF or not BTF are rejected."""
    with pytest.raises(ValueError, match="ELF"):
        section(b"#!/bin/sh\n", ".BTF")
    with pytest.raises(ValueError, match="BTF"):
        Btf(bytes(64))
    with pytest.raises(ValueError, match="no section"):
        section(OBJECTS[0].read_bytes(), ".nothing")
