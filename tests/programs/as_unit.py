"""Run a program as systemd would run it for a unit: with the capabilities and the seccomp filters that the unit leaves.

Usage: as_unit.py UNIT PROGRAM [ARGUMENT...], as root. The filters are those of systemd's own seccomp-util.c. What needs
mounts (ProtectSystem and friends) is not done.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

_KILL_PROCESS: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
EQUAL, _MASKED_EQUAL = 4, 7
_NAMESPACES: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
_FAMILIES: Final = range(46)


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Filter:
    """A seccomp filter under construction."""

    def __init__(self, default: int) -> None:
        """Start with what happens to system calls without a rule."""
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))

    def rule(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Add a rule; names that this machine does not have are left out, as systemd does.

        :param comparisons: argument, operator, and its one or two operands.
        """
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        array = (_Comparison * max(1, len(comparisons)))(*(_Comparison(*comparison) for comparison in comparisons))
        if number >= 0:
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, ctypes.c_uint(len(comparisons)), array
            )

    def load(self) -> None:
        """Put it into force for this process."""
        result = self._library.seccomp_load(self._context)
        assert result == 0, os.strerror(-result)


def read_unit(path: Path) -> dict[str, str]:
    """Return the settings of a unit that has each of them once."""
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {name: value for name, equals, value in lines if equals}


def main(unit: Path, program: list[str]) -> None:
    """Become the program."""
    settings = read_unit(unit)
    denied = Filter(ALLOW)
    if settings["MemoryDenyWriteExecute"] == "yes":
        both = mmap.PROT_WRITE | mmap.PROT_EXEC
        denied.rule(failing(errno.EPERM), "mmap", (2, _MASKED_EQUAL, both, both))
        for name in ("mprotect", "pkey_mprotect"):
            denied.rule(failing(errno.EPERM), name, (2, _MASKED_EQUAL, mmap.PROT_EXEC, mmap.PROT_EXEC))
    if settings["RestrictNamespaces"] == "yes":
        denied.rule(failing(errno.ENOSYS), "clone3")
        for name in ("unshare", "setns"):
            denied.rule(failing(errno.EPERM), name)
        for flag in _NAMESPACES:
            denied.rule(failing(errno.EPERM), "clone", (0, _MASKED_EQUAL, flag, flag))
    families = {getattr(socket, name) for name in settings["RestrictAddressFamilies"].split()}
    for family in set(_FAMILIES) - families:
        denied.rule(failing(errno.EAFNOSUPPORT), "socket", (0, EQUAL, family, 0))
    allowed = Filter(_KILL_PROCESS)
    for name in _system_calls(settings["SystemCallFilter"].split()):
        allowed.rule(ALLOW, name)
    denied.load()
    allowed.load()
    os.execvp(program[0], program)  # noqa: S606 - that is what this is for


def failing(number: int) -> int:
    """Return the action that lets a system call fail with an errno, SCMP_ACT_ERRNO."""
    return 0x00050000 | number


def _system_calls(names: list[str]) -> set[str]:
    """Replace the groups, which may hold others, by what is in them."""
    found = set()
    # systemd's programs tell whoever listens there how they ended, since 254.
    silent = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    for name in names:
        if name.startswith("@"):
            listed = subprocess.run(
                ["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True, env=silent
            )
            members = [line.strip() for line in listed.stdout.splitlines() if line.startswith("    ")]
            found |= _system_calls([member for member in members if not member.startswith("#")])
        else:
            found.add(name)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "filtered":
        main(Path(sys.argv[2]), sys.argv[3:])
    else:
        capabilities = read_unit(Path(sys.argv[1]))["CapabilityBoundingSet"].split()
        kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)
        limited = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}"]
        again = [*limited, sys.executable, "-m", "tests.programs.as_unit", "filtered", *sys.argv[1:]]
        os.execvp("setpriv", again)  # noqa: S606 - as above
