"""bpf(2) as far as a map writer needs it: thin calls that take and return bytes and file descriptors.

The system call is made directly, so that the sidecar needs no library to write maps; only loading needs one. The
structures are those of `union bpf_attr` in linux/bpf.h. Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

SYSCALLS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""The number of bpf(2) by machine."""
KERNEL_TYPES: Final = Path("/sys/kernel/btf/vmlinux")
"""The types of this kernel, if it describes them (CONFIG_DEBUG_INFO_BTF)."""
_BATCH: Final = 4096
_ATTR_SIZE: Final = 128
_MAP_TYPE_ARRAY: Final = 2
_MAP_TYPE_ARRAY_OF_MAPS: Final = 12
_READ_ONLY: Final = 8  # BPF_F_RDONLY
_EFFECTIVE: Final = 1  # BPF_F_QUERY_EFFECTIVE
_MOST_PROGRAMS: Final = 4096
_MOST_MAPS: Final = 64  # of one program, MAX_USED_MAPS

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    """`enum bpf_cmd`."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    BTF_LOAD = 18
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ITER_CREATE = 33
    LINK_DETACH = 34


class AttachType(IntEnum):
    """`enum bpf_attach_type`: the hooks that our programs use."""

    CGROUP_SOCK_OPS = 3
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34

    @property
    def program_type(self) -> int:
        """The `enum bpf_prog_type` of programs on this hook."""
        return {
            AttachType.CGROUP_SOCK_OPS: 13,  # BPF_PROG_TYPE_SOCK_OPS
            AttachType.CGROUP_INET_SOCK_RELEASE: 9,  # BPF_PROG_TYPE_CGROUP_SOCK
        }.get(self, 18)  # BPF_PROG_TYPE_CGROUP_SOCK_ADDR


_PROG_TYPE_TRACING: Final = 26
_TRACE_ITER: Final = 28


class Types(NamedTuple):
    """Type ids of the keys and values of a map, which some kinds of map require."""

    btf: int
    """Descriptor of the type information, from `load_btf`."""
    key: int
    value: int


def create_map(  # noqa: PLR0913 - the fields of the kernel's structure
    kind: int,
    key_size: int,
    value_size: int,
    entries: int,
    *,
    flags: int = 0,
    inner: int = 0,
    types: Types | None = None,
) -> int:
    """Create a map; the caller closes its descriptor.

    :param kind: of `enum bpf_map_type`.
    :param inner: descriptor of the template for the elements of a map of maps.
    """
    # The 24 bytes between the inner map and the types: NUMA node, name, network device.
    attr = struct.pack("=IIIIII24xIII", kind, key_size, value_size, entries, flags, inner, *(types or (0, 0, 0)))
    return _bpf(Command.MAP_CREATE, attr)


def load_btf(data: bytes) -> int:
    """Load type information; the caller closes its descriptor."""
    # Data, log buffer, sizes of both, log level.
    return _bpf(Command.BTF_LOAD, struct.pack("=QQIII", _address(data), 0, len(data), 0, 0))


def pin(fd: int, path: Path) -> None:
    """Pin an object in the BPF file system."""
    _named(Command.OBJ_PIN, path, fd)


def open_pin(path: Path, *, read_only: bool = False) -> int:
    """Open a pinned map, program or link; the caller closes the descriptor.

    :param read_only: for a map that this process does not write, or is not allowed to.
    """
    return _named(Command.OBJ_GET, path, 0, _READ_ONLY if read_only else 0)


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the value of a key, or None if it does not exist."""
    value = ctypes.create_string_buffer(value_size)
    try:
        _bpf(Command.MAP_LOOKUP_ELEM, struct.pack("=IxxxxQQQ", fd, _address(key), ctypes.addressof(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Insert or replace one element."""
    _bpf(Command.MAP_UPDATE_ELEM, struct.pack("=IxxxxQQQ", fd, _address(key), _address(value), 0))


class BatchError(OSError):
    """The kernel refused an element of a batch."""

    done: int = 0
    """Number of elements written before it."""


def update_all(fd: int, items: Sequence[tuple[bytes, bytes]]) -> None:
    """Insert or replace elements, in order, in batches.

    :raises BatchError: if the kernel refuses one.
    """
    done = 0
    for chunk in _chunks(items):
        keys = b"".join(key for key, _ in chunk)
        values = b"".join(value for _, value in chunk)
        batch = _batch(fd, len(chunk), keys=_address(keys), values=_address(values))
        attr = ctypes.create_string_buffer(batch, _ATTR_SIZE)
        try:
            _call(Command.MAP_UPDATE_BATCH, attr)
        except OSError as error:
            (taken,) = struct.unpack_from("=I", attr, 32)
            refused = BatchError(error.errno, error.strerror)
            # Before 6.7, if the kernel has no memory for the first element, it does not change the count.
            refused.done = done + (taken if taken < len(chunk) else 0)
            raise refused from error
        done += len(chunk)


def delete_all(fd: int, keys: Sequence[bytes]) -> None:
    """Delete elements, in order, in batches; stops with FileNotFoundError at a missing one."""
    for chunk in _chunks(keys):
        joined = b"".join(chunk)
        _bpf(Command.MAP_DELETE_BATCH, _batch(fd, len(chunk), keys=_address(joined)))


def items(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Read all elements of a hash map, or of an array in the order of their indexes, batch by batch."""
    count = _BATCH
    position = ctypes.create_string_buffer(max(8, key_size))
    started = finished = False
    while not finished:
        keys = ctypes.create_string_buffer(count * key_size)
        values = ctypes.create_string_buffer(count * value_size)
        attr = ctypes.create_string_buffer(
            _batch(
                fd,
                count,
                keys=ctypes.addressof(keys),
                values=ctypes.addressof(values),
                position_in=ctypes.addressof(position) if started else 0,
                position_out=ctypes.addressof(position),
            ),
            _ATTR_SIZE,
        )
        try:
            _call(Command.MAP_LOOKUP_BATCH, attr)
        except FileNotFoundError:  # the end; the elements read before it are valid
            finished = True
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a single bucket has more elements than the batch
                raise
            count *= 2
            continue
        started = True
        (read,) = struct.unpack_from("=I", attr, 32)
        yield from zip(_cut(keys.raw, key_size, read), _cut(values.raw, value_size, read), strict=True)


def values(fd: int, first: int, count: int, value_size: int) -> bytes:
    """Return the values of consecutive elements of an array, one after the other, with one call.

    :returns: fewer values if the array ends before.
    """
    if count <= 0:
        return b""
    keys, found = ctypes.create_string_buffer(4 * count), ctypes.create_string_buffer(value_size * count)
    # A position is the key before the first element.
    start, end = ctypes.create_string_buffer(struct.pack("=I", max(0, first - 1))), ctypes.create_string_buffer(4)
    batch = _batch(
        fd,
        count,
        keys=ctypes.addressof(keys),
        values=ctypes.addressof(found),
        position_in=ctypes.addressof(start) if first else 0,
        position_out=ctypes.addressof(end),
    )
    attr = ctypes.create_string_buffer(batch, _ATTR_SIZE)
    with contextlib.suppress(FileNotFoundError):  # the array ends before the count
        _call(Command.MAP_LOOKUP_BATCH, attr)
    (read,) = struct.unpack_from("=I", attr, 32)
    return found.raw[: read * value_size]


def load_program(instructions: bytes, attach_type: AttachType) -> int:
    """Load a program from raw instructions, to find out whether the kernel accepts it.

    :returns: its descriptor, which the caller closes.
    """
    return _load(attach_type.program_type, instructions, attach_type)


def load_iterator(instructions: bytes, function: int) -> int:
    """Load a program that the kernel runs for each object of some kind.

    :param function: the number of the function in the kernel's BTF that stands for the kind.
    :returns: its descriptor, which the caller closes.
    """
    return _load(_PROG_TYPE_TRACING, instructions, _TRACE_ITER, function)


def _load(kind: int, instructions: bytes, attach_type: int, function: int = 0) -> int:
    licence = b"Dual BSD/GPL\0"
    attr = struct.pack(
        "=IIQQIIQII16sII36xI",
        kind,
        len(instructions) // 8,
        _address(instructions),
        _address(licence),
        0,  # log level
        0,  # log size
        0,  # log buffer
        0,  # kernel version
        0,  # flags
        b"clb_probe",
        0,  # interface
        attach_type,
        function,  # after the program's own type information, which it does not have
    )
    return _bpf(Command.PROG_LOAD, attr)


def link_create(program: int, cgroup: int, attach_type: AttachType) -> int:
    """Attach a program to a cgroup, in addition to others; the caller closes the descriptor of the link."""
    return _bpf(Command.LINK_CREATE, struct.pack("=IIII", program, cgroup, attach_type, 0))


def link_iterator(program: int) -> int:
    """Make a readable iterator of a loaded program; the caller closes the descriptor of the link."""
    return _bpf(Command.LINK_CREATE, struct.pack("=IIII", program, 0, _TRACE_ITER, 0))


def iterate(link: int) -> int:
    """Start one run of an iterator; return a descriptor to read its output from, which the caller closes."""
    return _bpf(Command.ITER_CREATE, struct.pack("=II", link, 0))


def link_update(link: int, program: int) -> None:
    """Replace the program of a link, atomically for concurrent connects."""
    _bpf(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def link_detach(link: int) -> bool:
    """Detach the program of a link; connects that begin later do not run it. Returns whether the kernel can: 5.11."""
    try:
        _bpf(Command.LINK_DETACH, struct.pack("=I", link))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def link_cgroup(link: int) -> int:
    """Return the id (inode number) of the cgroup that a link is attached to; 0 once that cgroup is gone."""
    info = _info(link, 64)
    (cgroup,) = struct.unpack_from("=Q", info, 16)
    return int(cgroup)


def link_program(link: int) -> int:
    """Return the id of the program of a link."""
    (program,) = struct.unpack_from("=I", _info(link, 64), 8)
    return int(program)


def effective_programs(cgroup: int, attach_type: AttachType) -> tuple[int, ...]:
    """Return the ids of the programs that run for processes of a cgroup, in the order in which they run."""
    ids = ctypes.create_string_buffer(4 * _MOST_PROGRAMS)
    query = struct.pack("=IIIIQI", cgroup, attach_type, _EFFECTIVE, 0, ctypes.addressof(ids), _MOST_PROGRAMS)
    attr = ctypes.create_string_buffer(query, _ATTR_SIZE)
    _call(Command.PROG_QUERY, attr)
    (count,) = struct.unpack_from("=I", attr, 24)
    return struct.unpack_from(f"={count}I", ids)


def open_program(number: int) -> int:
    """Open a program by its id, which needs CAP_SYS_ADMIN; the caller closes the descriptor."""
    return _bpf(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))


def open_map(number: int) -> int:
    """Open a map by its id to read it, which needs CAP_SYS_ADMIN; the caller closes the descriptor."""
    return _bpf(Command.MAP_GET_FD_BY_ID, struct.pack("=III", number, 0, _READ_ONLY))


def name_and_maps(program: int) -> tuple[str, tuple[int, ...]]:
    """Return the name of a program, of which the kernel keeps 15 characters, and the ids of the maps that it uses."""
    ids = ctypes.create_string_buffer(4 * _MOST_MAPS)
    info = _info(program, 80, struct.pack("=52xIQ", _MOST_MAPS, ctypes.addressof(ids)))
    (count,) = struct.unpack_from("=I", info, 52)
    name = info[64:80].split(b"\0", 1)[0].decode(errors="replace")
    return name, struct.unpack_from(f"={min(count, _MOST_MAPS)}I", ids)


def program_time(program: int) -> int:
    """Return the run time of a program in nanoseconds, as counted while kernel.bpf_stats_enabled was on."""
    (nanoseconds,) = struct.unpack_from("=Q", _info(program, 224), 192)  # bpf_prog_info.run_time_ns
    return int(nanoseconds)


def map_sizes(map_: int) -> tuple[int, int]:
    """Return key size and value size of a map, in bytes."""
    _, _, key_size, value_size = struct.unpack_from("=IIII", _info(map_, 64), 0)
    return key_size, value_size


def map_entries(map_: int) -> int:
    """Return the largest number of elements of a map."""
    (entries,) = struct.unpack_from("=I", _info(map_, 64), 16)
    return int(entries)


class GracePeriod:
    """Waits until every program that is running now has ended.

    Updating a map of maps does this: the kernel waits for an RCU grace period before the call returns (kernel commit
    1ae80cf31938; its own selftest btf_map_in_map relies on it). Unlike membarrier(MEMBARRIER_CMD_GLOBAL), it also works
    on one CPU and with nohz_full.
    """

    def __init__(self, maps: tuple[int, int] | None = None) -> None:
        """Use the given maps, or create private ones.

        :param maps: descriptors of the outer and the inner map, as `maps` returns them; `close` closes them.
        """
        if maps:
            self._outer, self._inner = maps
        else:
            self._inner = create_map(_MAP_TYPE_ARRAY, 4, 4, 1)
            self._outer = create_map(_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, inner=self._inner)

    @property
    def maps(self) -> tuple[int, int]:
        """Descriptors of the outer and the inner map; the caller must not close them."""
        return self._outer, self._inner

    def wait(self) -> None:
        """Return when all programs that were running at the call have ended; this takes some milliseconds."""
        update(self._outer, bytes(4), struct.pack("=I", self._inner))

    def close(self) -> None:
        """Close the maps."""
        os.close(self._outer)
        os.close(self._inner)


def _syscall_number() -> int:
    machine = platform.machine()
    if machine not in SYSCALLS:
        raise OSError(errno.ENOSYS, f"bpf(2) is not supported on {machine}")
    return SYSCALLS[machine]


def _bpf(command: Command, attr: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(attr, max(_ATTR_SIZE, len(attr))))


def _call(command: Command, attr: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(ctypes.c_long(_syscall_number()), command, attr, len(attr))
    if result < 0:
        _raise()
    return result


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _named(command: Command, path: Path, fd: int, flags: int = 0) -> int:
    name = os.fsencode(path) + b"\0"
    return _bpf(command, struct.pack("=QII", _address(name), fd, flags))


def _info(fd: int, size: int, request: bytes = b"") -> bytes:
    info = ctypes.create_string_buffer(request, size)
    _bpf(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, ctypes.addressof(info)))
    return info.raw


def _batch(  # noqa: PLR0913 - the fields of the kernel's structure
    fd: int, count: int, *, keys: int, values: int = 0, position_in: int = 0, position_out: int = 0
) -> bytes:
    return struct.pack("=QQQQIIQQ", position_in, position_out, keys, values, count, fd, 0, 0)


def _cut(data: bytes, size: int, count: int) -> Iterator[bytes]:
    return (data[index * size : (index + 1) * size] for index in range(count))


def _address(data: bytes) -> int:
    """Return the address of the bytes; the caller keeps them alive during the call."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _chunks(things: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(things), _BATCH):
        yield things[start : start + _BATCH]
