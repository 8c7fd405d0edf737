"""Programs, maps and links with their ids in the kernel, ours and foreign ones, through libbpf."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.datapath import bpf
from clb_discovery.datapath.bpf import AttachType
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.layout.structs import Map

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
_PROGRAM_INFO: Final = 80
MAPS: Final = frozenset({*Map, *(pin.name for pin in Pins("any").waiting)})
_MAP_IDS_COUNT, _MAP_IDS = 52, 56  # offsets in struct bpf_prog_info


class KernelObject(NamedTuple):
    """One object of the kernel."""

    kind: str
    """`prog`, `map` or `link`."""
    id: int

    def exists(self) -> bool:
        """Return whether the kernel still has it."""
        fd: int = getattr(_libbpf, f"bpf_{self.kind}_get_fd_by_id")(ctypes.c_uint(self.id))
        if fd >= 0:
            os.close(fd)
        return fd >= 0


def pinned(directory: Path) -> dict[str, KernelObject]:
    """Return all objects that are pinned below a directory, by the name of their pins."""
    found = {}
    for path in sorted(directory.glob("*/*")):
        kind = "prog" if path.name in PROGRAMS else "map" if path.name in MAPS else "link"
        fd = bpf.open_pin(path)
        found[path.name] = KernelObject(kind, _id(fd))
        os.close(fd)
    return found


def detach(pin: Path) -> None:
    """Detach a pinned link by force; it stays as a link to nothing. Before 5.11 only its pin can be removed."""
    link = bpf.open_pin(pin)
    if not bpf.link_detach(link):
        pin.unlink()
    os.close(link)


def freeze(directory: Path) -> None:
    """Let the kernel reject every write to the pinned maps from user space, for good."""
    # The kernel freezes no map with a lock in its values, and none that is mapped. User space does not write the maps
    # that only programs use. The lease of a reader is not about pools.
    unfrozen = {Map.SERVERS, Map.OWNERS, Map.PLACES, Map.SOCKETS, Map.PEERS, Map.EVENTS, Map.CHANGES, Map.LISTENER}
    for map_ in set(Map) - unfrozen:
        fd = bpf.open_pin(directory / map_)
        assert _libbpf.bpf_map_freeze(fd) == 0
        os.close(fd)


def used_maps(program: KernelObject) -> set[KernelObject]:
    """Return the maps of a program, including those without a pin."""
    fd = _libbpf.bpf_prog_get_fd_by_id(ctypes.c_uint(program.id))
    ids = (ctypes.c_uint32 * 64)()
    request = ctypes.create_string_buffer(_PROGRAM_INFO)
    struct.pack_into("=I", request, _MAP_IDS_COUNT, len(ids))
    struct.pack_into("=Q", request, _MAP_IDS, ctypes.addressof(ids))
    _fill_info(fd, request)
    os.close(fd)
    (count,) = struct.unpack_from("=I", request, _MAP_IDS_COUNT)
    return {KernelObject("map", number) for number in ids[:count]}


def _id(fd: int) -> int:
    info = ctypes.create_string_buffer(_PROGRAM_INFO)
    _fill_info(fd, info)
    (number,) = struct.unpack_from("=I", info, 4)  # in the same place for all kinds
    return int(number)


def _fill_info(fd: int, info: ctypes.Array[ctypes.c_char]) -> None:
    size = ctypes.c_uint32(len(info))
    assert _libbpf.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) == 0


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, registers, offset, immediate)


_CGROUP_SKB, _EGRESS, _ALLOW_MULTI = 8, 1, 2  # BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS, BPF_F_ALLOW_MULTI
_ALLOW: Final = _instruction(0xB7, 0, 0, 1) + _instruction(0x95)  # r0 = 1; exit
_DENY: Final = _instruction(0xB7, 0, 0, 0) + _instruction(0x95)  # r0 = 0; exit
_USER_IP4: Final = 4  # offset in struct bpf_sock_addr


def _rewriting(old: str, new: str) -> bytes:
    """Return a connect4 program that replaces one address by another."""
    old_word, new_word = (struct.unpack("=i", IPv4Address(address).packed)[0] for address in (old, new))
    return (
        _instruction(0x61, 0x12, _USER_IP4)  # r2 = *(u32 *)(r1 + user_ip4)
        + _instruction(0x56, 0x02, 2, old_word)  # if w2 != old skip 2
        + _instruction(0xB4, 0x03, 0, new_word)  # w3 = new
        + _instruction(0x63, 0x31, _USER_IP4)  # *(u32 *)(r1 + user_ip4) = r3
        + _ALLOW
    )


def foreign_rewrite(cgroup: Path, old: str, new: str) -> AbstractContextManager[None]:
    """Attach a foreign program, beside others: it redirects connects from one IPv4 address to another."""
    return _foreign(cgroup, _rewriting(old, new))


def foreign_denial(cgroup: Path) -> AbstractContextManager[None]:
    """Attach a foreign program, beside others: it denies every connect to an IPv4 address."""
    return _foreign(cgroup, _DENY)


@contextmanager
def foreign_filter(cgroup: Path) -> Iterator[None]:
    """Attach a foreign program, beside others: it drops all egress of the cgroup's sockets (IPAddressDeny=any)."""
    count = len(_DENY) // 8
    program = _libbpf.bpf_prog_load(_CGROUP_SKB, b"deny", b"GPL", _DENY, ctypes.c_size_t(count), None)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert _libbpf.bpf_prog_attach(program, directory, _EGRESS, ctypes.c_uint(_ALLOW_MULTI)) == 0
        yield
    finally:
        _libbpf.bpf_prog_detach2(program, directory, _EGRESS)
        os.close(directory)
        os.close(program)


@contextmanager
def _foreign(cgroup: Path, instructions: bytes) -> Iterator[None]:
    program = bpf.load_program(instructions, AttachType.CGROUP_INET4_CONNECT)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    link = bpf.link_create(program, directory, AttachType.CGROUP_INET4_CONNECT)
    try:
        yield
    finally:
        for fd in (link, directory, program):
            os.close(fd)


@contextmanager
def foreign_exclusive(cgroup: Path, attach_type: AttachType) -> Iterator[None]:
    """Attach a foreign program that allows no other on its hook, as very old tools do."""
    program = bpf.load_program(_ALLOW, attach_type)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert _libbpf.bpf_prog_attach(program, directory, ctypes.c_int(attach_type), ctypes.c_uint(0)) == 0
        yield
    finally:
        _libbpf.bpf_prog_detach2(program, directory, ctypes.c_int(attach_type))
        os.close(directory)
        os.close(program)
