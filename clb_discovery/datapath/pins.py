"""Where the objects of an instance are named in the BPF file system.

Maps and programs have the names that they have in bpf/, links that of their program with `_link`, all of them below
`/sys/fs/bpf/clb-discovery/<instance>/v<layout>/`. A program is attached for as long as its link has a pin. The file
system allows no dot in a name.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clb_discovery.datapath.bpf import AttachType
from clb_discovery.datapath.mountinfo import mounts
from clb_discovery.errors import HostError, UsageError
from clb_discovery.files import safe_directory
from clb_discovery.layout.structs import ADDED, LAYOUT, Map
from clb_discovery.model.servers import Protocol

BPFFS: Final = Path("/sys/fs/bpf")
PROGRAMS: Final = {
    "clb_connect4": AttachType.CGROUP_INET4_CONNECT,
    "clb_connect6": AttachType.CGROUP_INET6_CONNECT,
    "clb_sendmsg4": AttachType.CGROUP_UDP4_SENDMSG,
    "clb_sendmsg6": AttachType.CGROUP_UDP6_SENDMSG,
    "clb_recvmsg4": AttachType.CGROUP_UDP4_RECVMSG,
    "clb_recvmsg6": AttachType.CGROUP_UDP6_RECVMSG,
    "clb_getpeername4": AttachType.CGROUP_INET4_GETPEERNAME,
    "clb_getpeername6": AttachType.CGROUP_INET6_GETPEERNAME,
    "clb_sock_ops": AttachType.CGROUP_SOCK_OPS,
    "clb_sock_release": AttachType.CGROUP_INET_SOCK_RELEASE,
}
"""Every program of the object and the hook that it belongs on."""

_INSTANCE: Final = re.compile(r"[A-Za-z0-9_@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of one instance and layout."""

    instance: str

    def __post_init__(self) -> None:
        """Check the name, which becomes part of paths.

        :raises UsageError: if it cannot be one.
        """
        if not _INSTANCE.fullmatch(self.instance):
            raise UsageError(f"{self.instance!r} is no instance name; use up to 64 letters, digits, _, - and @")

    @property
    def home(self) -> Path:
        """Directory of the instance, with every layout in it."""
        return BPFFS / "clb-discovery" / self.instance

    @property
    def directory(self) -> Path:
        """Directory of the instance's objects of this layout."""
        return self.home / f"v{LAYOUT}"

    def map(self, map_: Map) -> Path:
        """Return the pin of a map."""
        return self.directory / map_

    def program(self, name: str) -> Path:
        """Return the pin of a program."""
        return self.directory / name

    def link(self, name: str) -> Path:
        """Return the pin of a program's link."""
        return self.directory / f"{name}_link"

    @property
    def waiting(self) -> tuple[Path, Path]:
        """Pins of the outer and the inner map by which a writer waits for running programs, see `GracePeriod`."""
        return self.directory / "clb_waiting", self.directory / "clb_waiting_inner"

    def records(self, protocol: Protocol) -> Path:
        """Return the pin of the iterator over the records that are with sockets; not every kernel can have one."""
        return self.directory / f"clb_records_{protocol.name.lower()}"

    def are_there(self) -> bool:
        """Tell whether every map, program and link has its pin.

        :raises HostError: if one may not look there.
        """
        links = (f"{name}_link" for name in PROGRAMS)
        return self._exist(*Map, *PROGRAMS, *links, *(pin.name for pin in self.waiting))

    def exist(self) -> bool:
        """Tell whether there is anything of the instance, of any layout.

        :raises HostError: if one may not look there.
        """
        try:
            return self.home.exists()
        except PermissionError as error:
            raise HostError(f"not allowed to look into {BPFFS}; run as root") from error

    def are_removed(self) -> bool:
        """Tell whether the directory is still mounted here, as by `BindReadOnlyPaths=`, but has been removed."""
        try:
            return self.home.stat().st_nlink == 0
        except OSError:
            return False

    def other_layouts(self) -> list[Path]:
        """Return the directories that loaders of other layouts have left, with what is still attached there.

        :raises HostError: if one may not look there.
        """
        try:
            return sorted(path for path in self.home.glob("v*") if path != self.directory)
        except PermissionError as error:
            raise HostError(f"not allowed to look into {BPFFS}; run as root") from error

    def have_maps(self) -> bool:
        """Tell whether every map has its pin that each version of this layout has.

        :raises HostError: if one may not look there.
        """
        return self._exist(*(map_ for map_ in Map if map_ not in ADDED))

    def _exist(self, *names: str) -> bool:
        try:
            return all((self.directory / name).exists() for name in names)
        except PermissionError as error:
            raise HostError(f"not allowed to look into {BPFFS}; run as root") from error

    def create_directory(self) -> None:
        """Make the directory, and mount the BPF file system where that has not been done.

        :raises HostError: if either cannot be.
        """
        try:
            if not is_bpffs(BPFFS):
                _mount_bpffs()
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:  # another instance has just removed what was above, as the last one
                self.directory.mkdir(parents=True, exist_ok=True)
            with safe_directory(self.directory):  # a file system that others have mounted may be for all to write
                pass
        except OSError as error:
            raise HostError(
                f"cannot use the BPF file system at {BPFFS}: {error.strerror}; mount it (mount -t bpf bpf {BPFFS}) and "
                "run as root"
            ) from error

    def remove(self) -> None:
        """Remove every pin of the instance, of any layout; links first, so that nothing runs on vanishing maps.

        :raises HostError: if the file system does not allow it.
        """
        _remove(self.home)
        with suppress(OSError):  # in use by another instance
            self.home.parent.rmdir()

    def remove_other_layouts(self) -> None:
        """Remove every pin of other layouts, links first; raises as `remove`."""
        for directory in self.other_layouts():
            _remove(directory)


def _remove(directory: Path) -> None:
    try:
        for link in directory.rglob("*_link"):
            link.unlink()
        if directory.exists():
            shutil.rmtree(directory)
    except OSError as error:
        raise HostError(
            f"cannot remove {directory}: {error.strerror}; is the BPF file system writable? Run as root"
        ) from error


def is_bpffs(path: Path) -> bool:
    """Tell whether a BPF file system is mounted there."""
    return any(mount.file_system == "bpf" and mount.path == path for mount in mounts())


def _mount_bpffs() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # As systemd mounts it; by default everybody may make directories there, ours before us among them.
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(0), b"mode=700") != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
