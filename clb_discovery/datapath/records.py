"""Which sockets our programs keep a record of, over all network namespaces.

A record is in one of the places, which are read as a whole, or where its place was taken with the socket itself. Of the
latter sock_diag(7) shows those of TCP sockets only, to who has CAP_BPF, so the others are read by a BPF iterator over
the storage map: a tiny program that the kernel runs for each socket in it. Loading that takes CAP_BPF and CAP_PERFMON,
a kernel with its own type information (CONFIG_DEBUG_INFO_BTF), and version 5.12, whose iterators can ask for a socket's
cookie; reading one that is pinned takes the right to read a file. Reading the places takes CAP_BPF before 5.19, where
bpf(2) is not for everybody.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.core import btf, layout
from clb_discovery.core.layout import Map
from clb_discovery.datapath import bpf
from clb_discovery.errors import HostError

NOT_ALLOWED: Final = "not allowed to read the records of sockets; run as root, or with CAP_BPF"

_NEVER_USED: Final = bytes(layout.OWNER.size)
_KERNEL_TYPES: Final = Path("/sys/kernel/btf/vmlinux")
_ITERATED: Final = "bpf_iter_bpf_sk_storage_map"
_RECORD: Final = struct.Struct(f"=Q{layout.MEMBER.size}s")
"""What the program writes for each socket: its cookie, and the member of its record."""
_BUFFER: Final = _RECORD.size * 1024


class RecordMaps(NamedTuple):
    """Descriptors of the maps that hold records."""

    owners: int
    """The array of `struct clb_owner`."""
    places: int
    """The array of `struct clb_socket`."""
    stored: int
    """The SK_STORAGE map of `struct clb_stored`."""


class Placed(NamedTuple):
    """What the places say."""

    members: dict[int, bytes]
    """The packed member that each socket was sent to, by its cookie."""
    crowded: bool
    """Whether sockets that found their place taken have their records with themselves."""


def placed_records(maps: RecordMaps) -> Placed:
    """Read the places, those of sockets that are gone included.

    :raises HostError: if our privileges do not allow it.
    """
    members: dict[int, bytes] = {}
    crowded = False
    owners, places = (
        bpf.items(fd, *layout.SIZES[map_]) for fd, map_ in ((maps.owners, Map.OWNERS), (maps.places, Map.PLACES))
    )
    try:
        for (_, owner), (_, record) in zip(owners, places, strict=True):
            if owner != _NEVER_USED:
                found = layout.unpack_owner(owner)
                members[found.cookie] = layout.unpack_socket(record).member
                crowded |= found.crowded != 0
    except OSError as error:
        raise HostError(
            NOT_ALLOWED if error.errno == errno.EPERM else f"cannot read the places of records: {error.strerror}"
        ) from error
    members.pop(0, None)  # nobody's
    return Placed(members, crowded)


def stored_records(stored: int, pinned: Path | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the cookie and the packed member of every socket that has its record with itself.

    :param stored: the SK_STORAGE map.
    :param pinned: an iterator over it, as `make_iterator` makes it, to read instead of one of our own.
    :raises HostError: if the kernel or our privileges do not allow it.
    """
    data = b""
    try:
        for chunk in _read(stored, pinned):
            data += chunk
            whole = len(data) - len(data) % _RECORD.size
            yield from _RECORD.iter_unpack(data[:whole])
            data = data[whole:]
    except OSError as error:
        raise HostError(_reason(error)) from error


def make_iterator(stored: int) -> int:
    """Load the iterator over the SK_STORAGE map; the caller closes its link, or pins it for others to read.

    :raises OSError: if the kernel or our privileges do not allow it.
    """
    program = bpf.load_iterator(_PROGRAM, _iterated())
    try:
        return bpf.link_iterator(program, stored)
    finally:
        os.close(program)


def _read(stored: int, pinned: Path | None) -> Iterator[bytes]:
    """Yield what the program writes, cut anywhere."""
    with ExitStack() as stack:
        if pinned:
            records = os.open(pinned, os.O_RDONLY | os.O_CLOEXEC)
        else:
            link = make_iterator(stored)
            stack.callback(os.close, link)
            records = bpf.iterate(link)
        stack.callback(os.close, records)
        chunk = b"first"
        while chunk:
            try:
                chunk = os.read(records, _BUFFER)
            except BlockingIOError:  # a million sockets without a record: go on from there
                continue
            yield chunk


@lru_cache(maxsize=1)
def _iterated() -> int:
    """Return the number of the function that stands for this kind of iterator."""
    try:
        number = btf.function_id(_KERNEL_TYPES.read_bytes(), _ITERATED)
    except ValueError as error:
        raise OSError(errno.EOPNOTSUPP, str(error)) from error
    if number is None:
        raise OSError(errno.EOPNOTSUPP, f"no {_ITERATED}")
    return number


def _reason(error: OSError) -> str:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return (
            "not allowed to read the records that are with sockets; run as root, or with CAP_BPF and CAP_PERFMON, or "
            "load the data plane again on a kernel of version 5.12 or later with CONFIG_DEBUG_INFO_BTF"
        )
    return (
        f"this kernel ({os.uname().release}) cannot show the records that are with sockets: {error.strerror}; it "
        "needs version 5.12 or later and CONFIG_DEBUG_INFO_BTF"
    )


def _instruction(code: int, destination: int = 0, *, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, immediate)


# Instructions and helpers of linux/bpf.h; the context is meta, map, sk and value, each a pointer.
_MOVE, _MOVE_REGISTER, _ADD, _CALL, _EXIT = 0xB7, 0xBF, 0x07, 0x85, 0x95
_LOAD, _STORE = 0x79, 0x7B
_IF_EQUAL = 0x15
_GET_SOCKET_COOKIE, _SEQ_WRITE = 46, 127
_OWNER_AT = layout.STORED.offsets()["socket"][0]
_MEMBER_SIZE: Final = layout.MEMBER.size
_MEMBER_AT: Final = layout.STORED.offsets()["record"][0] + layout.SOCKET.offsets()["member"][0]
_COPY: Final = b"".join(
    _instruction(_LOAD, 1, source=8, offset=_MEMBER_AT + offset)
    + _instruction(_STORE, 10, source=1, offset=offset - _MEMBER_SIZE)
    for offset in range(0, _MEMBER_SIZE, 8)
)
_WRITE: Final = (
    _instruction(_MOVE_REGISTER, 1, source=7)
    + _instruction(_CALL, immediate=_GET_SOCKET_COOKIE)
    + _instruction(_STORE, 10, source=0, offset=-_RECORD.size)
    + _COPY
    + _instruction(_LOAD, 1, source=6, offset=0)  # meta
    + _instruction(_LOAD, 1, source=1, offset=0)  # meta->seq
    + _instruction(_MOVE_REGISTER, 2, source=10)
    + _instruction(_ADD, 2, immediate=-_RECORD.size)
    + _instruction(_MOVE, 3, immediate=_RECORD.size)
    + _instruction(_CALL, immediate=_SEQ_WRITE)
)
_AHEAD: Final = len(_WRITE) // 8
_PROGRAM: Final = (
    _instruction(_MOVE_REGISTER, 6, source=1)
    + _instruction(_LOAD, 7, source=6, offset=16)  # sk, null at the end
    + _instruction(_IF_EQUAL, 7, immediate=0, offset=_AHEAD + 4)
    + _instruction(_LOAD, 8, source=6, offset=24)  # value
    + _instruction(_IF_EQUAL, 8, immediate=0, offset=_AHEAD + 2)
    + _instruction(_LOAD, 1, source=8, offset=_OWNER_AT)
    + _instruction(_IF_EQUAL, 1, immediate=0, offset=_AHEAD)  # it was given back
    + _WRITE
    + _instruction(_MOVE, 0)
    + _instruction(_EXIT)
)
