"""The run-time directory of an instance: the locks of its one writer and its one loader, and what they say.

`/run/clb-discovery/<instance>/lock` carries a POSIX record lock (fcntl(2)) for as long as somebody may write the maps,
so that anybody can ask who without taking it. Its first byte stands for writing them, its second for loading; a sidecar
that loads by itself holds both. `state.json` is replaced whenever the sidecar's knowledge changes, and stays when it
ends; `loaded.json` is what `load` leaves for a writer that may not look for itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from clb_discovery.errors import BusyError, HostError
from clb_discovery.files import Place, acting_as, read_file, replace_file, safe_directory
from clb_discovery.model.neighbours import Neighbour, recorded, remembered

RUN: Final = Path("/run/clb-discovery")

_LOCK: Final = "lock"
_STATE: Final = "state.json"
_LOADED: Final = "loaded.json"
_MOST_STATE: Final = 64 << 20
"""Bytes of a file that is read; a sidecar with 10,000 sources says some millions."""
_OURS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FLOCK: Final = struct.Struct("@hhqqi")  # struct flock: type, whence, start, length, process
_STOP_IT: Final = "stop it, or use another --instance"
_SHARED_DIRECTORY: Final = 0o1775  # sticky: of who is in the group nobody can replace what root has put there
_SHARED_LOCK: Final = 0o660


class _Bytes(NamedTuple):
    """Part of a lock file."""

    start: int
    length: int


_WRITING: Final = _Bytes(0, 1)
_LOADING: Final = _Bytes(1, 1)
_BOTH: Final = _Bytes(0, 0)  # to the end, wherever that is


def state_directory(given: str | None, environment: Mapping[str, str]) -> Path | None:
    """Return where to keep what has to outlive a reboot: what was given, else what systemd made, else None.

    :param environment: with `STATE_DIRECTORY`, where `StateDirectory=` of the unit names one (systemd.exec(5)).
    """
    found = given or environment.get("STATE_DIRECTORY", "").split(":")[0]  # there may be several
    return Path(found) if found else None


class Instance:
    """The run-time directory of one instance."""

    def __init__(self, name: str) -> None:
        """Name the directory; nothing is created yet.

        :param name: checked by `Pins` before.
        """
        self.name = name
        self._directory = RUN / name

    def exists(self) -> bool:
        """Tell whether anybody has ever held or traced it since the host was booted."""
        return self._directory.exists()

    @contextmanager
    def locked(self, *, loads: bool = True) -> Iterator[None]:
        """Hold the instance as its only writer while the block runs.

        :param loads: also as the only one who loads; without, `load` may put the programs back meanwhile.
        :raises BusyError: if another process holds it.
        :raises HostError: if the directory cannot be used.
        """
        with self._locked(_LOCK, _STOP_IT, _BOTH if loads else _WRITING):
            yield

    @contextmanager
    def loading(self) -> Iterator[bool]:
        """Be the only one who loads while the block runs, and yield whether nobody else writes; raises as `locked`."""
        with self._locked(_LOCK, _STOP_IT, _LOADING) as lock:
            yield _lock_bytes(lock, _WRITING)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Be the only one who traces the instance while the block runs; raises as `locked`."""
        with self._locked("trace", "it is the one that traces; stop it first", _BOTH):
            yield

    @contextmanager
    def _locked(self, name: str, way_out: str, part: _Bytes) -> Iterator[int]:
        try:
            with safe_directory(RUN, make=True), self._opened(make=True) as directory:
                # A process that may read the file may lock it, and keep us from our lock.
                lock = os.open(name, os.O_RDWR | os.O_CREAT | _OURS, 0o600, dir_fd=directory)
        except OSError as error:
            raise HostError(
                f"cannot use {self._directory}: {error.strerror}; run as root, or as who is in the group that "
                "clb-discovery load --group has named"
            ) from error
        try:
            if not _lock_bytes(lock, part):
                raise BusyError(f"instance {self.name!r} is held by process {_holder(lock, part)}; {way_out}")
            yield lock
        finally:
            os.close(lock)

    def share(self, group: int) -> None:
        """Let a group write the maps in this instance's name: hold the lock, and say how it is.

        :param group: its number; root without CAP_CHOWN has to be in it.
        :raises HostError: if the directory cannot be given to it.
        """
        try:
            with self._opened() as directory:
                lock = os.open(_LOCK, os.O_RDWR | _OURS, dir_fd=directory)
                try:
                    for fd, mode in ((directory, _SHARED_DIRECTORY), (lock, _SHARED_LOCK)):
                        os.chown(fd, -1, group)
                        os.fchmod(fd, mode)
                finally:
                    os.close(lock)
                if _owner(Place(directory, _STATE)) == os.fstat(directory).st_uid:
                    os.unlink(_STATE, dir_fd=directory)  # root's, which the group could not replace
        except OSError as error:
            raise HostError(f"cannot give {self._directory} to group {group}: {error.strerror}; run as root") from error

    def holder(self) -> int | None:
        """Return the process that holds the instance, or None. Not for the holder itself: it would lose the lock."""
        try:
            lock = os.open(self._directory / _LOCK, os.O_RDONLY | _OURS)
        except OSError:
            return None
        try:
            return _holder(lock, _WRITING)
        finally:
            os.close(lock)

    def write_loaded(self, cgroup: int, neighbours: Sequence[Neighbour] = ()) -> None:
        """Leave what a writer may not see for itself.

        :param cgroup: its id, which tells the one that the programs were attached to from one of the same name.
        :param neighbours: the other instances that were loaded then.
        :raises HostError: if it cannot be written.
        """
        found = {"cgroup": cgroup, "neighbours": recorded(neighbours)}
        try:
            with self._opened() as directory:
                replace_file(Place(directory, _LOADED), json.dumps(found).encode(), lasting=False)
        except OSError as error:
            raise HostError(f"cannot write {self._directory / _LOADED}: {error.strerror}; is there room?") from error

    def read_loaded(self) -> int | None:
        """Return what `load` left last; None if nothing."""
        found = _read(self._directory, _LOADED).get("cgroup")
        return found if isinstance(found, int) else None

    def read_neighbours(self) -> list[Neighbour]:
        """Return the other instances that were there at the last `load`."""
        return remembered(_read(self._directory, _LOADED).get("neighbours"))

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace what the sidecar says about itself.

        :raises HostError: if it cannot be written.
        """
        path = self._directory / _STATE
        try:
            with self._opened() as directory:
                place = Place(directory, _STATE)
                if _owner(place) not in {None, os.geteuid()}:  # another user's, which it need not stay
                    with suppress(OSError):
                        os.unlink(_STATE, dir_fd=directory)
                replace_file(place, json.dumps(state).encode(), lasting=False)  # no reboot leaves anything in /run
        except PermissionError as error:  # root's, from when the sidecar was root
            raise HostError(f"{path} is another user's; as root remove it") from error
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}; is there room?") from error

    def read_state(self) -> dict[str, Any]:
        """Return what the sidecar said last; empty if nothing, or nothing that can be read."""
        return _read(self._directory, _STATE)

    @contextmanager
    def as_writer(self) -> Iterator[None]:
        """Act as the user that wrote the state while the block runs; it may be less trusted than we are."""
        try:
            found = (self._directory / _STATE).lstat()
        except OSError:
            yield
            return
        with acting_as(found.st_uid, found.st_gid):
            yield

    def hosts_file(self) -> Path | None:
        """Return where the sidecar published names last, or None."""
        path = self.read_state().get("hosts_file")
        return Path(path) if isinstance(path, str) else None

    def forget(self) -> None:
        """Remove what was said; the lock file stays, since a new one would let a second holder in."""
        with self._opened() as directory:
            for name in (_STATE, _LOADED):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)

    @contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        with safe_directory(self._directory, make=make, shared=True) as directory:
            yield directory


def _owner(place: Place) -> int | None:
    """Return whose a file is; None if there is none."""
    try:
        return os.stat(place.name, dir_fd=place.directory, follow_symlinks=False).st_uid
    except OSError:
        return None


def _read(path: Path, name: str) -> dict[str, Any]:
    """Return an object of JSON; empty if there is none. Who writes there may be less trusted than who reads."""
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = json.loads(read_file(Place(directory, name), _MOST_STATE) or b"null")
        finally:
            os.close(directory)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lock_bytes(lock: int, part: _Bytes) -> bool:
    """Take a lock; return whether that was possible."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, part.length, part.start)
    except OSError:
        return False
    return True


def _holder(lock: int, part: _Bytes) -> int | None:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, part.start, part.length, 0)
    kind, _, _, _, process = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, question))
    return None if kind == fcntl.F_UNLCK else process
