"""Give up the privilege to load: a seccomp filter that limits bpf(2) to reading and writing maps.

A service manager can only allow or forbid a whole system call (systemd.exec(5), SystemCallFilter=), and writing maps is
the same call as loading programs. So a sidecar that does not load (`run --loader none`) gives up loading itself, for
its lifetime and for all its children. The filter follows seccomp(2): it checks the architecture first, because the
numbers of calls depend on it; calls of any other architecture (32-bit, x32) fail.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final, NamedTuple

from clb_discovery.datapath.bpf import SYSCALLS, Command
from clb_discovery.errors import HostError

ALLOWED: Final = (
    Command.MAP_LOOKUP_ELEM,
    Command.MAP_UPDATE_ELEM,
    Command.MAP_LOOKUP_BATCH,
    Command.MAP_UPDATE_BATCH,
    Command.MAP_DELETE_BATCH,
    Command.OBJ_GET,
    Command.OBJ_GET_INFO_BY_FD,
)
"""The commands of bpf(2) that stay allowed: opening, reading and writing maps."""


class _Machine(NamedTuple):
    """The numbers of an architecture that a filter needs."""

    audit: int
    """AUDIT_ARCH_* of linux/audit.h."""
    seccomp: int
    """The number of seccomp(2)."""


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 317),
    "aarch64": _Machine(0xC00000B7, 277),
    "riscv64": _Machine(0xC00000F3, 277),
    "ppc64le": _Machine(0xC0000015, 358),
}
_X32: Final = 0x40000000  # __X32_SYSCALL_BIT: the same architecture for the filter, but other numbers
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER, _TSYNC = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # struct seccomp_data, of little-endian machines
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine() -> None:
    """Let all commands of bpf(2) except `ALLOWED` fail with EPERM, in all threads and children of this process.

    :raises HostError: if the kernel does not support it, or the architecture is unknown.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise HostError(f"--loader none is not supported on {platform.machine()}; use another --loader")
    code = instructions(machine.audit, SYSCALLS[platform.machine()])
    program = _Program(len(code) // 8, code)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:  # otherwise a filter requires CAP_SYS_ADMIN
        result = _libc.syscall(ctypes.c_long(machine.seccomp), _SET_MODE_FILTER, _TSYNC, ctypes.byref(program))
        if result == 0:
            return
    reason = os.strerror(ctypes.get_errno())
    raise HostError(f"cannot drop the right to load programs by seccomp(2): {reason}; it needs CONFIG_SECCOMP_FILTER")


def instructions(audit: int, number: int) -> bytes:
    """Return the filter as packed `struct sock_filter`.

    :param audit: the architecture whose calls are filtered; calls of others fail.
    :param number: the number of bpf(2) there.
    """
    fail = 6 + len(ALLOWED)  # where the last two instructions are
    allow = fail + 1
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 0, fail - 2, audit),  # jumps count from the next instruction
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, fail - 4, 0, _X32),
        (_IF_EQUAL, 0, allow - 5, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        *((_IF_EQUAL, allow - at - 1, 0, command) for at, command in enumerate(ALLOWED, start=6)),
        (_RETURN, 0, 0, _FAIL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
