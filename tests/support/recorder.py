"""A stand-in for the data plane's records of connected sockets: maps like its own, and what its programs leave in them.

Numbers are those of linux/bpf.h, linux/btf.h and asm-generic/socket.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from clb_discovery.core import layout
from clb_discovery.datapath import bpf, probe

_ARRAY, _SK_STORAGE, _NO_PREALLOC = 2, 24, 1  # BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_SK_STORAGE, BPF_F_NO_PREALLOC
_COOKIE = 57  # SO_COOKIE


@contextmanager
def places_map() -> Iterator[int]:
    """Make an array of places for records, all free."""
    probe.raise_memlock_limit()
    made = bpf.create_map(_ARRAY, 4, layout.SOCKET.size, layout.PLACES)
    try:
        yield made
    finally:
        os.close(made)


@contextmanager
def storage_map() -> Iterator[int]:
    """Make an SK_STORAGE map for records."""
    probe.raise_memlock_limit()
    with ExitStack() as stack:
        btf = bpf.load_btf(_types())
        stack.callback(os.close, btf)
        made = bpf.create_map(_SK_STORAGE, 4, layout.SOCKET.size, 0, flags=_NO_PREALLOC, types=bpf.Types(btf, 1, 3))
        stack.callback(os.close, made)
        yield made


def cookie_of(sock: socket.socket) -> int:
    """Return what tells a socket from every other until the next boot."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _COOKIE, 8), sys.byteorder)


def place_of(cookie: int) -> bytes:
    """Return the key of the place where the socket with this cookie has its record, unless it is taken."""
    return layout.pack_index(cookie % layout.PLACES)


def record(cookie: int, member: bytes, *, crowded: bool = False) -> bytes:
    """Return the record of a socket.

    :param member: packed `struct clb_member`.
    :param crowded: in a place, whether another socket has found it taken.
    """
    return layout.SOCKET.struct.pack(cookie, 0, 0, bytes(2), 0, 0, 0, 0, 0, crowded, 0, member)


def write_place(places: int, cookie: int, member: bytes, *, crowded: bool = False) -> None:
    """Put a record into the place of its socket, whosever that is."""
    bpf.update(places, place_of(cookie), record(cookie, member, crowded=crowded))


def write_storage(storage: int, sock: socket.socket, member: bytes) -> None:
    """Put a record with its socket."""
    bpf.update(storage, struct.pack("=i", sock.fileno()), record(cookie_of(sock), member))


@contextmanager
def all_places_taken(places: int) -> Iterator[None]:
    """While the block runs, let every socket find its place taken; all are free afterwards."""
    keys = [place_of(index) for index in range(layout.PLACES)]
    nobody = bytes(layout.MEMBER.size)
    try:
        # Cookies that no socket will ever have.
        bpf.update_all(places, [(key, record(1 << 63 | index, nobody, crowded=True)) for index, key in enumerate(keys)])
        yield
    finally:
        bpf.update_all(places, [(key, bytes(layout.SOCKET.size)) for key in keys])


def _types() -> bytes:
    """Return BTF with 1: int (the key), 2: unsigned char, 3: an array of it (the value)."""
    names = b"\0int\0unsigned char\0"
    types = (
        struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)  # BTF_KIND_INT, signed, 32 bits
        + struct.pack("=IIII", 5, 1 << 24, 1, 8)
        + struct.pack("=IIIIII", 0, 3 << 24, 0, 2, 1, layout.SOCKET.size)  # BTF_KIND_ARRAY
    )
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
