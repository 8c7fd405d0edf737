"""A stand-in for the data plane's record: programs that write one with every socket that connects in a cgroup.

They are written as instructions, so that they run wherever bpf(2) does, without a compiler. Numbers are those of
linux/bpf.h and linux/btf.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clb_discovery.datapath import bpf, probe

RECORD_SIZE = 56
"""Bytes of a record: the 40 of `struct clb_member`, and more that only the data plane knows."""

_SK_STORAGE, _NO_PREALLOC = 24, 1  # BPF_MAP_TYPE_SK_STORAGE, BPF_F_NO_PREALLOC
_SK_STORAGE_GET, _CREATE = 107, 1  # BPF_FUNC_sk_storage_get, BPF_SK_STORAGE_GET_F_CREATE
_SOCKET = 64  # offset of sk in struct bpf_sock_addr
_MOV, _MOV_REGISTER, _LOAD, _STORE, _LOAD_MAP, _IF_ZERO, _CALL, _EXIT = 0xB7, 0xBF, 0x79, 0x62, 0x18, 0x15, 0x85, 0x95


@contextmanager
def storage_map() -> Iterator[int]:
    """Make an SK_STORAGE map for records."""
    probe.raise_memlock_limit()
    with ExitStack() as stack:
        btf = bpf.load_btf(_types())
        stack.callback(os.close, btf)
        made = bpf.create_map(_SK_STORAGE, 4, RECORD_SIZE, 0, flags=_NO_PREALLOC, types=bpf.Types(btf, 1, 3))
        stack.callback(os.close, made)
        yield made


@contextmanager
def recording(cgroup: Path, storage: int, member: bytes) -> Iterator[None]:
    """While the block runs, give every socket that connects in the cgroup a record that starts with the member."""
    program_bytes = _program(storage, member)
    with ExitStack() as stack:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, directory)
        for hook in (bpf.AttachType.CGROUP_INET4_CONNECT, bpf.AttachType.CGROUP_INET6_CONNECT):
            program = bpf.load_program(program_bytes, hook)
            stack.callback(os.close, program)
            stack.callback(os.close, bpf.link_create(program, directory, hook))
        yield


def _program(storage: int, member: bytes) -> bytes:
    stores = [
        _instruction(_STORE, 0, offset=offset, immediate=word)
        for offset, (word,) in zip(range(0, len(member), 4), struct.iter_unpack("=i", member), strict=True)
    ]
    return b"".join(
        [
            _instruction(_LOAD, 2, source=1, offset=_SOCKET),
            _instruction(_IF_ZERO, 2, offset=6 + len(stores)),
            _instruction(_LOAD_MAP, 1, source=1, immediate=storage),  # two instructions long
            _instruction(0),
            _instruction(_MOV, 3),
            _instruction(_MOV, 4, immediate=_CREATE),
            _instruction(_CALL, immediate=_SK_STORAGE_GET),
            _instruction(_IF_ZERO, 0, offset=len(stores)),
            *stores,
            _instruction(_MOV, 0, immediate=1),
            _instruction(_EXIT),
        ]
    )


def _instruction(code: int, destination: int = 0, *, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, immediate)


def _types() -> bytes:
    """Return BTF with 1: int (the key), 2: unsigned char, 3: an array of it (the value)."""
    names = b"\0int\0unsigned char\0"
    types = (
        struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)  # BTF_KIND_INT, signed, 32 bits
        + struct.pack("=IIII", 5, 1 << 24, 1, 8)
        + struct.pack("=IIIIII", 0, 3 << 24, 0, 2, 1, RECORD_SIZE)  # BTF_KIND_ARRAY
    )
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
