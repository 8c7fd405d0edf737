"""Run a program as systemd would run it for a unit: with its user, files, capabilities and filters.

Usage: as_unit.py UNIT PROGRAM [ARGUMENT...], as root. The filters are those of systemd's own seccomp-util.c. Of the
settings that need mounts, only those are applied that could break a working service: read-only, hidden and replaced
paths. CLB_TEST_STATE names the directory that the unit has for its StateDirectory=.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

USER: Final = 64998
"""The number of a unit's user and group if this host does not have them."""
STATE: Final = "CLB_TEST_STATE"
HERE: Final = Path("/mnt")
"""Where the program finds directories that are hidden in their own places: checkout, state, credentials."""

_CHECKOUT: Final = Path(__file__).parents[2]
_KILL_PROCESS: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
EQUAL, _MASKED_EQUAL = 4, 7
_NAMESPACES: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
_FAMILIES: Final = range(46)
_LISTS: Final = frozenset({"SystemCallFilter", "Environment", "LoadCredential"})
"""Settings that add up."""

_CLONE_NEWNS: Final = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_MOUNT_SETATTR: Final = 442
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Filter:
    """A seccomp filter under construction."""

    def __init__(self, default: int) -> None:
        """Start with the action for system calls without a rule."""
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
        """Apply the filter to this process."""
        result = self._library.seccomp_load(self._context)
        assert result == 0, os.strerror(-result)


def read_unit(path: Path) -> dict[str, str]:
    """Return the settings of a unit; repeated ones that accumulate are joined by spaces."""
    settings: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[name] = f"{settings[name]} {value}" if name in _LISTS and name in settings else value
    return settings


def main(unit: Path, program: list[str]) -> None:
    """Replace this process by the program."""
    settings = read_unit(unit)
    user = _number(settings.get("User", "root"))
    group = _number(settings.get("Group", settings.get("User", "root")) or "nobody")
    environment = dict(os.environ)
    _enter_mounts(settings, user, environment)
    kept = [name.removeprefix("CAP_").lower() for name in settings["CapabilityBoundingSet"].split()]
    groups = ",".join(str(_number(name)) for name in settings.get("SupplementaryGroups", "").split())
    limited = ["setpriv", "--no-new-privs", f"--reuid={user}", f"--regid={group}"]
    limited += [f"--groups={groups}" if groups else "--clear-groups"]
    limited += [f"--bounding-set=-all{''.join(f',+{name}' for name in kept)}", f"--inh-caps={_caps(settings)}"]
    if settings.get("AmbientCapabilities"):
        limited.append(f"--ambient-caps={_caps(settings)}")
    here = HERE / "checkout"
    mapped = [word.replace(str(_CHECKOUT), str(here)) for word in (sys.executable, *program)]
    environment["PYTHONPATH"] = str(here)
    os.chdir(here)
    again = [*limited, mapped[0], "-m", "tests.programs.as_unit", "filtered", str(HERE / "unit"), *mapped[1:]]
    shutil.copy(unit, HERE / "unit")
    (HERE / "unit").chmod(0o644)
    os.execvpe("setpriv", again, environment)  # noqa: S606 - the purpose of this program


def _caps(settings: Mapping[str, str]) -> str:
    names = settings.get("AmbientCapabilities", "").split()
    return ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])


def _number(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return USER


def _enter_mounts(settings: Mapping[str, str], user: int, environment: dict[str, str]) -> None:
    assert _libc.unshare(_CLONE_NEWNS) == 0
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("none", HERE, "tmpfs", 0, "mode=755")
    (HERE / "checkout").mkdir()
    _mount(_CHECKOUT, HERE / "checkout", "", _MS_BIND | _MS_REC)
    binds = [path.removeprefix("-") for path in settings.get("BindReadOnlyPaths", "").split()]
    sources = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in binds}
    paths = [path.removeprefix("-") for path in settings.get("ReadWritePaths", "").split()]
    if "RuntimeDirectory" in settings:
        paths.append(f"/run/{settings['RuntimeDirectory']}")
        Path(paths[-1]).mkdir(exist_ok=True)
    writable = {path: os.open(path, os.O_PATH) for path in paths}
    read_only = ["/"] if settings.get("ProtectSystem") == "strict" else []
    for path in read_only:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        arguments = (ctypes.c_long(_MOUNT_SETATTR), _AT_FDCWD, path.encode(), _AT_RECURSIVE)
        assert _libc.syscall(*arguments, attributes, ctypes.c_size_t(len(attributes))) == 0, os.strerror(
            ctypes.get_errno()
        )
    temporary = ["/tmp"] if settings.get("PrivateTmp") == "yes" else []  # noqa: S108 - tests listen there
    for path in temporary:
        _mount(path, path, "", _MS_BIND)
    for path in ("/dev", "/proc", "/sys/fs/bpf", *_cgroup_mounts(), *temporary, str(HERE)):
        if not (path.startswith("/sys") and settings.get("ProtectKernelTunables") == "yes"):
            _mount("none", path, "", _MS_REMOUNT | _MS_BIND)
    for where in settings.get("TemporaryFileSystem", "").split():
        path, _, _ = where.partition(":")
        _mount("none", path, "tmpfs", 0, "mode=755")
    for path, fd in sources.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{fd}", path, "", _MS_BIND | _MS_REC)
        _mount("none", path, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    for path, fd in writable.items():
        _mount(f"/proc/self/fd/{fd}", path, "", _MS_BIND)
        _mount("none", path, "", _MS_REMOUNT | _MS_BIND)
    for fd in (*sources.values(), *writable.values()):
        os.close(fd)
    environment.update(_given(settings, user))


def _cgroup_mounts() -> list[str]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    return [where for _, where, kind, *_ in mounts if kind == "cgroup2"]


def _given(settings: Mapping[str, str], user: int) -> dict[str, str]:
    """Create what systemd creates for a unit, and return the variables that name it."""
    found = {}
    if settings.get("StateDirectory"):
        found["STATE_DIRECTORY"] = str(HERE / "state")
        (HERE / "state").mkdir()
        if STATE in os.environ:
            _mount(os.environ[STATE], HERE / "state", "", _MS_BIND)
            _mount("none", HERE / "state", "", _MS_REMOUNT | _MS_BIND)
        os.chown(HERE / "state", user, user)
    credentials = HERE / "credentials"
    credentials.mkdir()
    for given in settings.get("LoadCredential", "").split():
        name, _, path = given.partition(":")
        copy = credentials / name
        shutil.copyfile(path, copy)
        copy.chmod(0o400)
        os.chown(copy, user, user)
    for assignment in settings.get("Environment", "").split():
        name, _, value = assignment.partition("=")
        found[name] = re.sub("%d", str(credentials), value)
    return found


def _mount(source: Path | str, target: Path | str, kind: str, flags: int, options: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    assert _libc.mount(*arguments) == 0, f"{target}: {os.strerror(ctypes.get_errno())}"


def filtered(unit: Path, program: list[str]) -> None:
    """Replace this process by the program, behind the filters."""
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
    families = {getattr(socket, name) for name in settings["RestrictAddressFamilies"].split() if name != "none"}
    for family in set(_FAMILIES) - families:
        denied.rule(failing(errno.EAFNOSUPPORT), "socket", (0, EQUAL, family, 0))
    otherwise = settings.get("SystemCallErrorNumber")
    allowed = Filter(failing(getattr(errno, otherwise)) if otherwise else _KILL_PROCESS)
    for name in system_calls(["@default", *settings["SystemCallFilter"].split()]):
        allowed.rule(ALLOW, name)
    denied.load()
    allowed.load()
    os.execvp(program[0], program)  # noqa: S606 - the purpose of this program


def failing(number: int) -> int:
    """Return the action that lets a system call fail with an errno, SCMP_ACT_ERRNO."""
    return 0x00050000 | number


def system_calls(names: list[str]) -> set[str]:
    """Replace each group, also inside groups, by its system calls."""
    # Since version 254 systemd's programs report to a listener how they ended.
    silent = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], check=True, capture_output=True, text=True, env=silent
    )
    groups: dict[str, list[str]] = {}
    for line in listed.stdout.splitlines():
        if line.startswith("@"):
            members = groups.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())
    found: set[str] = set()
    while names:
        name = names.pop()
        if name.startswith("@"):
            names += groups[name]
        else:
            found.add(name)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "filtered":
        filtered(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
