"""Read the records that our programs keep of sockets, over all network namespaces.

A record is in one of the places, an array that is read as a whole; or, if its bucket was full, in the storage of the
socket itself. From socket storage, sock_diag(7) returns only the records of TCP sockets, and requires CAP_BPF. All
others are read by a BPF iterator: a tiny program that the kernel runs for each socket of a protocol in the network
namespace of the reader. Loading it requires CAP_BPF, CAP_PERFMON, a kernel with its own type information
(CONFIG_DEBUG_INFO_BTF) and Linux 5.12, whose iterators can get the cookie of a socket. Reading a pinned iterator
requires only permission to read a file. Reading the places requires CAP_BPF before Linux 5.19.

An iterator over the storage map would return the sockets of all namespaces at once. Hardened kernels refuse it, because
it could change the map.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.datapath import bpf
from clb_discovery.datapath.sockets import btf
from clb_discovery.errors import HostError
from clb_discovery.layout import elements, structs
from clb_discovery.model.servers import Protocol

NOT_ALLOWED: Final = "not allowed to read the records of sockets; run as root, or with CAP_BPF"

_NEVER_USED: Final = bytes(structs.BUCKET.size)
_ITERATED: Final = {Protocol.TCP: "bpf_iter_tcp", Protocol.UDP: "bpf_iter_udp"}
"""The functions of the kernel that represent the iterators."""
_RECORD: Final = struct.Struct(f"=Q{structs.MEMBER.size}s")
"""The output of the program for each socket: its cookie, and the member of its record."""
_BUFFER: Final = _RECORD.size * 1024


class RecordMaps(NamedTuple):
    """Descriptors of the maps that hold records."""

    owners: int
    """The array of `struct clb_bucket`."""
    places: int
    """The array of `struct clb_socket`."""
    stored: int
    """The SK_STORAGE map of `struct clb_stored`."""


class Placed(NamedTuple):
    """The records in the places."""

    members: dict[int, bytes]
    """The packed member that each socket was sent to, by cookie."""
    crowded: bool
    """Whether there are records in socket storage, of sockets whose bucket was full."""


def placed_records(maps: RecordMaps) -> Placed:
    """Read all places, including those of sockets that are gone.

    :raises HostError: if our privileges do not allow it.
    """
    members: dict[int, bytes] = {}
    crowded = False
    try:
        owners = bpf.values(maps.owners, 0, bpf.map_entries(maps.owners), structs.BUCKET.size)
        places = bpf.values(maps.places, 0, bpf.map_entries(maps.places), structs.SOCKET.size)
        for bucket, at in enumerate(range(0, len(owners), structs.BUCKET.size)):
            data = owners[at : at + structs.BUCKET.size]
            if data != _NEVER_USED:
                found = elements.unpack_bucket(data)
                crowded |= found.crowded != 0
                for place, cookie in enumerate(found.cookies, bucket * structs.BUCKET_PLACES):
                    if cookie:
                        record = places[place * structs.SOCKET.size : (place + 1) * structs.SOCKET.size]
                        members[cookie] = elements.unpack_socket(record).member
    except OSError as error:
        raise HostError(
            NOT_ALLOWED if error.errno == errno.EPERM else f"cannot read the places of records: {error.strerror}"
        ) from error
    return Placed(members, crowded)


class StoredRecords:
    """The records in the storage of sockets of one protocol."""

    def __init__(self, stored: int, protocol: Protocol, pinned: Path | None = None) -> None:
        """Load the iterator that reads them; call `close` afterwards.

        :param stored: the SK_STORAGE map.
        :param pinned: an existing iterator over it, made by `make_iterator`; without it, a new one is loaded.
        :raises HostError: if the kernel or our privileges do not allow it.
        """
        self._held = ExitStack()
        if pinned:
            self._open = partial(os.open, pinned, os.O_RDONLY | os.O_CLOEXEC)
            return
        try:
            link = make_iterator(stored, protocol)
        except OSError as error:
            raise HostError(_reason(error)) from error
        self._held.callback(os.close, link)
        self._open = partial(bpf.iterate, link)

    def close(self) -> None:
        """Close the iterator."""
        self._held.close()

    def read(self) -> dict[int, bytes]:
        """Return the packed member by cookie, of the sockets in the calling thread's network namespace.

        :raises HostError: if the kernel or our privileges do not allow it.
        """
        try:
            return dict(_RECORD.iter_unpack(b"".join(self._chunks())))
        except OSError as error:
            raise HostError(_reason(error)) from error

    def _chunks(self) -> Iterator[bytes]:
        """Yield the output of the program, cut at arbitrary positions."""
        records = self._open()
        try:
            chunk = b"first"
            while chunk:
                try:
                    chunk = os.read(records, _BUFFER)
                except BlockingIOError:  # a million sockets without a record: read on
                    continue
                yield chunk
        finally:
            os.close(records)


def make_iterator(stored: int, protocol: Protocol) -> int:
    """Load an iterator over the sockets of a protocol; the caller closes its link, or pins it for other readers.

    :param stored: the SK_STORAGE map with their records.
    :raises OSError: if the kernel or our privileges do not allow it.
    """
    iterated = _ITERATED[protocol]
    if iterated not in _numbers():
        raise OSError(errno.EOPNOTSUPP, f"no {iterated}")
    program = bpf.load_iterator(_program(stored), _numbers()[iterated])
    try:
        return bpf.link_iterator(program)
    finally:
        os.close(program)


@lru_cache(maxsize=1)
def _numbers() -> Mapping[str, int]:
    """Return the numbers of the functions that represent the iterators, by name."""
    try:
        return btf.function_ids(bpf.KERNEL_TYPES.read_bytes(), _ITERATED.values())
    except ValueError as error:
        raise OSError(errno.EOPNOTSUPP, str(error)) from error


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


# Instructions and helpers of linux/bpf.h. The context begins with two pointers: meta and the socket.
_MOVE, _MOVE_REGISTER, _ADD, _CALL, _EXIT = 0xB7, 0xBF, 0x07, 0x85, 0x95
_LOAD, _STORE, _LOAD_MAP = 0x79, 0x7B, 0x18
_MAP_BY_DESCRIPTOR = 1
_IF_EQUAL = 0x15
_GET_SOCKET_COOKIE, _STORAGE_GET, _SEQ_WRITE = 46, 107, 127
_OWNER_AT = structs.STORED.offsets()["socket"][0]
_MEMBER_SIZE: Final = structs.MEMBER.size
_MEMBER_AT: Final = structs.STORED.offsets()["record"][0] + structs.SOCKET.offsets()["member"][0]
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
_END: Final = _instruction(_MOVE, 0) + _instruction(_EXIT)


def _program(stored: int) -> bytes:
    """Return the program for an SK_STORAGE map."""
    program = _unless_null(8, _instruction(_LOAD, 1, source=8, offset=_OWNER_AT) + _unless_null(1, _WRITE))
    program = (
        _instruction(_LOAD_MAP, 1, source=_MAP_BY_DESCRIPTOR, immediate=stored)
        + _instruction(0)  # the second half of the previous instruction
        + _instruction(_MOVE_REGISTER, 2, source=7)
        + _instruction(_MOVE, 3)  # no initial value
        + _instruction(_MOVE, 4)  # no flags: look up, do not create
        + _instruction(_CALL, immediate=_STORAGE_GET)
        + _instruction(_MOVE_REGISTER, 8, source=0)
        + program
    )
    return (
        _instruction(_MOVE_REGISTER, 6, source=1)
        + _instruction(_LOAD, 7, source=6, offset=8)  # the socket; null at the end
        + _unless_null(7, program)
        + _END
    )


def _unless_null(register: int, instructions: bytes) -> bytes:
    """Return instructions that are skipped if a register is 0. An owner of 0 means that the record was released."""
    return _instruction(_IF_EQUAL, register, offset=len(instructions) // 8) + instructions
