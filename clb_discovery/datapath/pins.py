"""The pins of an instance in the BPF file system.

All pins are below `/sys/fs/bpf/clb-discovery/<instance>/v<layout>/`. Maps and programs have their names in bpf/; a link
has the name of its program with `_link`. A program stays attached while its link has a pin. The file system does not
allow a dot in a name.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clb_discovery.datapath import bpf
from clb_discovery.datapath.bpf import AttachType
from clb_discovery.datapath.mountinfo import mounts
from clb_discovery.errors import HostError, UsageError
from clb_discovery.files import safe_directory
from clb_discovery.layout.structs import ADDED, LAYOUT, Map
from clb_discovery.model.servers import Protocol

BPFFS: Final = Path("/sys/fs/bpf")
_OURS: Final = BPFFS / "clb-discovery"
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
"""Every program of the object, with its hook."""
OUTCOMES: Final = "clb_sock_ops"
"""The program that learns how TCP connects end. The kernel calls it for every one of the cgroup, so it has a link only
while something needs that."""

_INSTANCE: Final = re.compile(r"[A-Za-z0-9_@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of one instance and layout."""

    instance: str

    def __post_init__(self) -> None:
        """Check the name, which becomes part of paths.

        :raises UsageError: if it is invalid.
        """
        if not _INSTANCE.fullmatch(self.instance):
            raise UsageError(f"{self.instance!r} is not an instance name; use up to 64 letters, digits, _, - and @")

    @property
    def home(self) -> Path:
        """Directory of the instance, with all layouts."""
        return _OURS / self.instance

    @property
    def directory(self) -> Path:
        """Directory of the instance's objects of this layout."""
        return self.home / f"v{LAYOUT}"

    @property
    def directories(self) -> tuple[Path, ...]:
        """Our directories that lead to the pins of this layout, the outermost first."""
        return _OURS, self.home, self.directory

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
        """Pins of the outer and the inner map with which a writer waits for running programs, see `GracePeriod`."""
        return self.directory / "clb_waiting", self.directory / "clb_waiting_inner"

    @property
    def writer_lock(self) -> Path:
        """Directory without content that the writer of the maps locks, in whatever layout; see `WriterLock`."""
        return self.home / "clb_writer"

    def records(self, protocol: Protocol) -> Path:
        """Return the pin of the iterator over records in socket storage; not every kernel supports one."""
        return self.directory / f"clb_records_{protocol.name.lower()}"

    def are_there(self) -> bool:
        """Tell whether every map and program has its pin, and every link except that of `OUTCOMES`.

        :raises HostError: if we are not allowed to read the directory.
        """
        links = (f"{name}_link" for name in PROGRAMS if name != OUTCOMES)
        return self._exist(*Map, *PROGRAMS, *links, *(pin.name for pin in self.waiting))

    def exist(self) -> bool:
        """Tell whether the instance has pins of any layout.

        :raises HostError: if we are not allowed to read the directory.
        """
        with _reading():
            return self.home.exists()

    def are_removed(self) -> bool:
        """Tell whether the directory was removed while still mounted here, as with `BindReadOnlyPaths=`."""
        try:
            return self.home.stat().st_nlink == 0
        except OSError:
            return False

    def layouts(self) -> list[int]:
        """Return the layouts that the instance has pins of, sorted."""
        return sorted(int(path.name[1:]) for path in self.home.glob("v*") if path.name[1:].isdecimal())

    def other_layouts(self) -> list[Path]:
        """Return the directories of other layouts, whose programs are still attached.

        :raises HostError: if we are not allowed to read the directory.
        """
        with _reading():
            return sorted(path for path in self.home.glob("v*") if path != self.directory)

    def other_layout_numbers(self) -> list[int]:
        """Return the numbers of other layouts, sorted; none if we are not allowed to read the directory."""
        return [layout for layout in self.layouts() if layout != LAYOUT]

    def have_maps(self) -> bool:
        """Tell whether all maps that every version of this layout has are pinned.

        :raises HostError: if we are not allowed to read the directory.
        """
        return self._exist(*(map_ for map_ in Map if map_ not in ADDED))

    def have_links(self) -> bool:
        """Tell whether any link of this layout is pinned.

        :raises HostError: if we are not allowed to read the directory.
        """
        with _reading():
            return any(self.directory.glob("*_link"))

    def _exist(self, *names: str) -> bool:
        with _reading():
            return all((self.directory / name).exists() for name in names)

    def create_directory(self) -> None:
        """Make the directory, and mount the BPF file system if necessary.

        :raises HostError: if either fails.
        """
        self._create(self.directory)

    def create_writer_lock(self) -> None:
        """Make the directory that the writer locks, for root alone; raises as `create_directory`."""
        self._create(self.writer_lock, mode=0o700)

    def _create(self, directory: Path, mode: int = 0o777) -> None:
        try:
            if not is_bpffs(BPFFS):
                _mount_bpffs()
            try:
                directory.mkdir(mode, parents=True, exist_ok=True)
            except FileNotFoundError:  # another instance, the last one, has just removed the parent
                directory.mkdir(mode, parents=True, exist_ok=True)
            with safe_directory(directory.parent):  # a file system mounted by others may be writable for everyone
                pass
        except OSError as error:
            raise HostError(
                f"cannot use the BPF file system at {BPFFS}: {error.strerror}; mount it (mount -t bpf bpf {BPFFS}) and "
                "run as root"
            ) from error

    def remove(self) -> None:
        """Remove every pin of the instance, of all layouts; links first, so that no program runs while its maps vanish.

        :raises HostError: if the file system does not allow it.
        """
        _remove(self.home)
        with suppress(OSError):  # in use by another instance
            self.home.parent.rmdir()

    def remove_layout(self) -> None:
        """Remove every pin of this layout, links first; raises as `remove`."""
        _remove(self.directory)

    def remove_other_layouts(self) -> None:
        """Remove every pin of other layouts, links first; raises as `remove`."""
        for directory in self.other_layouts():
            _remove(directory)


def instance_names() -> list[str]:
    """Return the names of the instances that have pins of any layout, sorted.

    :raises HostError: if we are not allowed to read the directory.
    """
    with suppress(FileNotFoundError), _reading():
        return sorted(path.name for path in _OURS.iterdir() if _INSTANCE.fullmatch(path.name))
    return []


@contextmanager
def _reading() -> Iterator[None]:
    """Raise HostError if the block is not allowed to read the BPF file system."""
    try:
        yield
    except PermissionError as error:
        raise HostError(f"not allowed to read {BPFFS}; run as root") from error


def _remove(directory: Path) -> None:
    try:
        for link in directory.rglob("*_link"):
            detach(link)
        if directory.exists():
            shutil.rmtree(directory)
    except OSError as error:
        raise HostError(
            f"cannot remove {directory}: {error.strerror}; is the BPF file system writable? Run as root"
        ) from error


def detach(link: Path) -> None:
    """Remove the pin of a link, if it is there, and detach its program.

    The kernel frees links in the background: after the removal of the pin alone, which has to do before Linux 5.11, the
    program runs for a moment.

    :raises OSError: if it is not allowed.
    """
    try:
        fd = bpf.open_pin(link)
    except FileNotFoundError:
        return
    try:
        link.unlink(missing_ok=True)  # first: where this is not allowed, nothing changes
        bpf.link_detach(fd)
    finally:
        os.close(fd)


def is_bpffs(path: Path) -> bool:
    """Tell whether a BPF file system is mounted there."""
    return any(mount.file_system == "bpf" and mount.path == path for mount in mounts())


def _mount_bpffs() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # The mode that systemd uses. By default every user can make directories there, and so could make ours first.
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(0), b"mode=700") != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
