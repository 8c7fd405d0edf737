"""Giving up the right to load: a seccomp filter after which bpf(2) reads and writes maps, and does nothing else.

A service manager can allow or forbid a system call as a whole (systemd.exec(5), SystemCallFilter=), and writing maps is
the same call as loading programs. So a sidecar that does not load (`run --loader none`) takes that from itself, for as
long as it lives and for all that it starts. The rules are those of seccomp(2): the architecture is looked at first,
since the numbers of calls depend on it, and calls of any other one (32-bit ones, x32) fail.
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
"""What of bpf(2) is left: maps are opened, read and written."""


class _Machine(NamedTuple):
    """What a filter has to know of an architecture."""

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
_X32: Final = 0x40000000  # __X32_SYSCALL_BIT: the same architecture to the filter, with numbers of its own
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
    """Take everything of bpf(2) but `ALLOWED` from this process, all its threads and children: it fails with EPERM.

    :raises HostError: if the kernel cannot do that, or this machine is not known.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise HostError(f"--loader none does not know how to confine itself on {platform.machine()}; leave it out")
    code = instructions(machine.audit, SYSCALLS[platform.machine()])
    program = _Program(len(code) // 8, code)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:  # without it a filter takes CAP_SYS_ADMIN
        result = _libc.syscall(ctypes.c_long(machine.seccomp), _SET_MODE_FILTER, _TSYNC, ctypes.byref(program))
        if result == 0:
            return
    reason = os.strerror(ctypes.get_errno())
    raise HostError(f"cannot give up loading programs by seccomp(2): {reason}; it needs CONFIG_SECCOMP_FILTER")


def instructions(audit: int, number: int) -> bytes:
    """Return the filter as packed `struct sock_filter`.

    :param audit: the architecture whose calls are judged; those of others fail.
    :param number: of bpf(2) there.
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
