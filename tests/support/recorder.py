"""A stand-in for the data plane's records of connected sockets: maps like its own, filled as its programs do.

Numbers are those of linux/bpf.h, linux/btf.h and asm-generic/socket.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from clb_discovery.datapath import bpf, probe
from clb_discovery.datapath.sockets.records import RecordMaps
from clb_discovery.layout import elements, structs

_ARRAY, _SK_STORAGE, _NO_PREALLOC = 2, 24, 1  # BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_SK_STORAGE, BPF_F_NO_PREALLOC
_COOKIE = 57  # SO_COOKIE


@contextmanager
def record_maps() -> Iterator[RecordMaps]:
    """Make maps for records, without any record."""
    probe.raise_memlock_limit()
    with ExitStack() as stack:
        btf = bpf.load_btf(_types())
        stack.callback(os.close, btf)
        made = RecordMaps(
            bpf.create_map(_ARRAY, 4, structs.BUCKET.size, structs.BUCKETS),
            bpf.create_map(_ARRAY, 4, structs.SOCKET.size, structs.PLACES),
            bpf.create_map(_SK_STORAGE, 4, structs.STORED.size, 0, flags=_NO_PREALLOC, types=bpf.Types(btf, 1, 3)),
        )
        for fd in made:
            stack.callback(os.close, fd)
        yield made


def cookie_of(sock: socket.socket) -> int:
    """Return the cookie of a socket, which is unique until the next boot."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _COOKIE, 8), sys.byteorder)


def bucket_of(cookie: int) -> bytes:
    """Return the key of the bucket with the places for the record of the socket with this cookie."""
    return elements.pack_index(cookie // structs.BUCKET_PLACES % structs.BUCKETS)


def record(member: bytes) -> bytes:
    """Return the record of a socket that was sent to a packed `struct clb_member`."""
    return structs.SOCKET.struct.pack(0, member, 0, 0, bytes(2), *[0] * 9)


def owners(cookies: Sequence[int], crowded: int = 0) -> bytes:
    """Return the owners of a bucket.

    :param crowded: the number of other sockets that have found it full.
    """
    return structs.BUCKET.struct.pack(b"".join(struct.pack("=Q", cookie << 1) for cookie in cookies), crowded)


def write_place(maps: RecordMaps, cookie: int, member: bytes, *, crowded: bool = False) -> None:
    """Put a record into one of the places of its socket, even if it is taken."""
    key, way = bucket_of(cookie), cookie % structs.BUCKET_PLACES
    found = elements.unpack_bucket(bpf.lookup(maps.owners, key, structs.BUCKET.size) or b"")
    cookies = [*found.cookies[:way], cookie, *found.cookies[way + 1 :]]
    bpf.update(maps.places, elements.pack_index(cookie % structs.PLACES), record(member))
    bpf.update(maps.owners, key, owners(cookies, found.crowded + crowded))


def write_stored(maps: RecordMaps, sock: socket.socket, member: bytes) -> None:
    """Store a record with its socket."""
    stored = structs.STORED.struct.pack(cookie_of(sock) << 1, record(member))
    bpf.update(maps.stored, struct.pack("=i", sock.fileno()), stored)


def is_in_its_place(maps: RecordMaps, sock: socket.socket) -> bool:
    """Return whether a socket has a record in one of its places."""
    found = bpf.lookup(maps.owners, bucket_of(cookie_of(sock)), structs.BUCKET.size)
    assert found is not None
    return cookie_of(sock) in elements.unpack_bucket(found).cookies


def is_stored(maps: RecordMaps, sock: socket.socket) -> bool:
    """Return whether a record is stored with a socket."""
    found = bpf.lookup(maps.stored, struct.pack("=i", sock.fileno()), structs.STORED.size)
    return found is not None and structs.STORED.struct.unpack(found)[0] != 0


@contextmanager
def all_places_taken(maps: RecordMaps) -> Iterator[None]:
    """While the block runs, every place is taken; afterwards all are free."""
    keys = [elements.pack_index(bucket) for bucket in range(structs.BUCKETS)]
    ways = range(structs.BUCKET_PLACES)
    try:
        # No socket ever has these cookies.
        taken = [owners([1 << 62 | number << 2 | way for way in ways], 0) for number in range(structs.BUCKETS)]
        bpf.update_all(maps.owners, list(zip(keys, taken, strict=True)))
        yield
    finally:
        bpf.update_all(maps.owners, [(key, bytes(structs.BUCKET.size)) for key in keys])


def _types() -> bytes:
    """Return BTF with 1: int (the key), 2: unsigned char, 3: an array of it (the value)."""
    names = b"\0int\0unsigned char\0"
    types = (
        struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)  # BTF_KIND_INT, signed, 32 bits
        + struct.pack("=IIII", 5, 1 << 24, 1, 8)
        + struct.pack("=IIIIII", 0, 3 << 24, 0, 2, 1, structs.STORED.size)  # BTF_KIND_ARRAY
    )
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
