"""A connect by io_uring, with system calls alone."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from contextlib import ExitStack
from typing import Final

_SETUP, _ENTER = 425, 426  # asm-generic/unistd.h
_GETEVENTS: Final = 1  # IORING_ENTER_GETEVENTS of linux/io_uring.h, as all below
_OP_CONNECT: Final = 16
_RING, _ENTRIES = 0, 0x10000000  # offsets of mmap(2)
_PARAMETERS: Final = struct.Struct("=30I")
"""struct io_uring_params: ten numbers, among them the sizes of both rings; then ten of what is where in each."""

_libc = ctypes.CDLL(None, use_errno=True)


def connect_by_io_uring(sock: socket.socket, target: tuple[str, int]) -> str:
    """Connect, and wait for the end; return `ok` or the name of the errno."""
    with ExitStack() as stack:
        parameters = ctypes.create_string_buffer(_PARAMETERS.size)
        ring = _checked(_libc.syscall(_SETUP, 1, parameters))
        stack.callback(os.close, ring)
        numbers = _PARAMETERS.unpack(parameters.raw)
        of_array, of_tail = numbers[10 + 6], numbers[10 + 1]
        of_head, of_entries = numbers[20], numbers[20 + 5]
        size = max(of_array + 4 * numbers[0], of_entries + 16 * numbers[1])
        rings = stack.enter_context(mmap.mmap(ring, size, offset=_RING))
        entries = stack.enter_context(mmap.mmap(ring, 64, offset=_ENTRIES))
        address = ctypes.create_string_buffer(_sockaddr(target))
        length = len(address) - 1  # without the NUL that ctypes adds
        entry = struct.pack("=BBHiQQII", _OP_CONNECT, 0, 0, sock.fileno(), length, ctypes.addressof(address), 0, 0)
        entries[:64] = entry.ljust(64, b"\0")
        struct.pack_into("=I", rings, of_array, 0)
        struct.pack_into("=I", rings, of_tail, 1)
        _checked(_libc.syscall(_ENTER, ring, 1, 1, _GETEVENTS, None, 0))
        _, result = struct.unpack_from("=Qi", rings, of_entries)
        assert struct.unpack_from("=I", rings, of_head) == (0,)
    return errno.errorcode[-result] if result else "ok"


def _sockaddr(target: tuple[str, int]) -> bytes:
    host, port = target
    if ":" in host:
        address = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
        return address + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
