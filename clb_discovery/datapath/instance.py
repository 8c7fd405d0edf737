"""The run-time directory of an instance: the locks of its one writer and its one loader, and their state files.

A process that writes the maps holds a POSIX record lock (fcntl(2)) on `/run/clb-discovery/<instance>/lock`, whose owner
other processes can read without taking the lock. The first byte of the file is locked for writing, the second for
loading; a sidecar that also loads holds both. The sidecar replaces `state.json` whenever its state changes; the file
stays when it ends. `load` leaves `loaded.json` for a writer without the privilege to find out for itself; if it shares
the instance with a group, it moves the state of a sidecar of root to `roots-state.json`.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from clb_discovery.errors import BusyError, ClbError, HostError
from clb_discovery.files import PASSABLE, Place, acting_as, read_file, replace_file, safe_directory
from clb_discovery.hints import AS_WRITER
from clb_discovery.model.neighbours import Neighbour, recorded, remembered

RUN: Final = Path("/run/clb-discovery")

_LOCK: Final = "lock"
_TRACE: Final = "trace"
_STATE: Final = "state.json"
_ROOTS_STATE: Final = "roots-state.json"
"""The state that a sidecar of root has left, once `load` has shared the instance with a group."""
RECORDS: Final = (_ROOTS_STATE, _STATE)
"""The files that may list hosts files with names of this instance, each with rights of its own."""
_LOADED: Final = "loaded.json"
_FAILED: Final = "failed-load.json"
_TAKES_OVER: Final = "takes-over"
_MOST_STATE: Final = 64 << 20
"""Most bytes of a file that is read; the state of a sidecar with 10,000 sources has some millions."""
_OURS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FLOCK: Final = struct.Struct("@hhqqi")  # struct flock: type, whence, start, length, process
_STOP_IT: Final = "stop it, or use another --instance"
_SHARED_DIRECTORY: Final = 0o1775  # sticky: members of the group cannot replace files created by root
_SHARED_LOCK: Final = 0o660


class _Bytes(NamedTuple):
    """A range of bytes of the lock file."""

    start: int
    length: int


_WRITING: Final = _Bytes(0, 1)
_LOADING: Final = _Bytes(1, 1)
_BOTH: Final = _Bytes(0, 0)  # a length of 0 means up to the end of the file


def state_directory(environment: Mapping[str, str]) -> Path | None:
    """Return the directory of systemd for state that has to survive a reboot; None if there is none.

    :param environment: has `STATE_DIRECTORY` if the unit has `StateDirectory=` (systemd.exec(5)).
    """
    found = environment.get("STATE_DIRECTORY", "").split(":")[0]  # there may be several
    return Path(found) if found else None


class Instance:
    """The run-time directory of one instance."""

    def __init__(self, name: str) -> None:
        """Name the directory; nothing is created yet.

        :param name: the caller has validated it with `Pins`.
        """
        self.name = name
        self._directory = RUN / name
        self._held: tuple[int, _Bytes] | None = None  # the lock of `locked`, and the part of it

    def exists(self) -> bool:
        """Tell whether any process has held or traced the instance since the boot."""
        return self._directory.exists()

    @contextmanager
    def locked(self, *, loads: bool = True) -> Iterator[None]:
        """Hold the instance as its only writer while the block runs.

        :param loads: also as its only loader. If not, `load` can restore the programs meanwhile.
        :raises BusyError: if another process holds it.
        :raises HostError: if the directory cannot be used.
        """
        part = _BOTH if loads else _WRITING
        self._held = self._taken(_LOCK, _STOP_IT, part), part
        try:
            yield
        finally:
            os.close(self._held[0])
            self._held = None

    def lock_again(self) -> bool:
        """Take the lock of `locked` again if its file is not in its place any more.

        A program that cleans /run may have removed it, or a file system was mounted over it. Otherwise a second writer
        could start, and no other process would find this one.

        :returns: whether it was lost, and the state files with it.
        :raises BusyError: if another process holds the instance by now.
        :raises HostError: if the directory cannot be used.
        """
        if self._held is None or self._is_in_place(self._held[0]):
            return False
        lost, part = self._held
        try:
            self._held = self._taken(_LOCK, _STOP_IT, part), part
        except HostError as error:
            raise HostError(
                f"{self._directory} was removed or replaced, and with it the lock that keeps a second sidecar away: "
                f"{error}"
            ) from None
        os.close(lost)
        return True

    def _is_in_place(self, lock: int) -> bool:
        try:
            return os.path.samestat(os.fstat(lock), os.lstat(self._directory / _LOCK))
        except OSError:
            return False

    @contextmanager
    def loading(self) -> Iterator[bool]:
        """Lock loading while the block runs, and yield whether no other process writes; raises as `locked`."""
        with self._locked(_LOCK, _STOP_IT, _LOADING) as lock:
            yield _lock_bytes(lock, _WRITING)

    @contextmanager
    def attaching(self) -> Iterator[None]:
        """Lock loading for the moment in which one program is attached or detached; raises as `locked`."""
        with self._locked(_LOCK, _STOP_IT, _LOADING):
            yield

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Lock tracing of the instance while the block runs; raises as `locked`."""
        with self._locked(_TRACE, "it is the one that traces; stop it first", _BOTH):
            yield

    @contextmanager
    def _locked(self, name: str, fix: str, part: _Bytes) -> Iterator[int]:
        lock = self._taken(name, fix, part)
        try:
            yield lock
        finally:
            os.close(lock)

    def _taken(self, name: str, fix: str, part: _Bytes) -> int:
        try:
            with safe_directory(RUN, make=True), self._opened(make=True) as directory:
                lock = _open_lock(Place(directory, name))
        except OSError as error:
            raise HostError(f"cannot use {self._directory}: {error.strerror}; {AS_WRITER}") from error
        if _lock_bytes(lock, part):
            return lock
        try:
            raise BusyError(f"instance {self.name!r} is held by process {_holder(lock, part)}; {fix}")
        finally:
            os.close(lock)

    def share(self, group: int, *, alone: bool) -> None:
        """Let a group act as the writer of this instance: hold the lock, and write its state.

        :param group: its number; root without CAP_CHOWN must be a member.
        :param alone: whether no other process writes. The state of a running sidecar stays, also if root runs it.
        :raises HostError: if the directory cannot be given to it.
        """
        try:
            with safe_directory(RUN) as run, self._opened() as directory:
                os.fchmod(run, PASSABLE)
                if alone and _owner(Place(directory, _STATE)) == os.fstat(directory).st_uid:
                    # The group could not replace a file of root.
                    os.rename(_STATE, _ROOTS_STATE, src_dir_fd=directory, dst_dir_fd=directory)
                lock = os.open(_LOCK, os.O_RDWR | _OURS, dir_fd=directory)
                try:
                    _give(directory, group, _SHARED_DIRECTORY)
                    _give(lock, group, _SHARED_LOCK)
                finally:
                    os.close(lock)  # which also ends our own locks of this file
        except OSError as error:
            raise HostError(f"cannot give {self._directory} to group {group}: {error.strerror}; run as root") from error

    def holder(self) -> int | None:
        """Return the process that holds the instance, or None. The holder must not call it: it would lose the lock."""
        return self._holder(_LOCK, _WRITING)

    def tracer(self) -> int | None:
        """Return the process that traces the instance, or None. That process must not call it, likewise."""
        return self._holder(_TRACE, _BOTH)

    def _holder(self, name: str, part: _Bytes) -> int | None:
        try:
            lock = os.open(self._directory / name, os.O_RDONLY | _OURS)
        except OSError:
            return None
        try:
            return _holder(lock, part)
        finally:
            os.close(lock)

    def write_loaded(self, cgroup: int, neighbours: Sequence[Neighbour] = ()) -> None:
        """Record facts for a writer without the privilege to find them out.

        :param cgroup: the id of the cgroup that the programs are attached to, which differs from the id of a later
            cgroup of the same name.
        :param neighbours: the other loaded instances.
        :raises HostError: if it cannot be written.
        """
        found = {"cgroup": cgroup, "neighbours": recorded(neighbours)}
        self._replace(_LOADED, json.dumps(found).encode())

    @contextmanager
    def noting_failed_load(self) -> Iterator[None]:
        """Record why a load in the block fails, for `status`; remove the record if it succeeds.

        The programs of a previous load stay in effect, so nothing else shows the failure before the next boot.
        """
        try:
            yield
        except ClbError as error:
            with suppress(OSError, HostError), self._opened() as directory:
                replace_file(Place(directory, _FAILED), json.dumps({"error": str(error)}).encode(), lasting=False)
            raise
        with suppress(OSError, HostError), self._opened() as directory:
            os.unlink(_FAILED, dir_fd=directory)

    def request_handover(self) -> None:
        """Replace the file whose change starts the unit that removes the programs of other layouts.

        :raises HostError: if it cannot be written.
        """
        self._replace(_TAKES_OVER, b"")

    def _replace(self, name: str, content: bytes) -> None:
        """Replace one of our files, which need not survive a reboot; raises HostError if it cannot be written."""
        try:
            with self._opened() as directory:
                replace_file(Place(directory, name), content, lasting=False)
        except OSError as error:
            raise HostError(
                f"cannot write {self._directory / name}: {error.strerror}; is the file system full?"
            ) from error

    def load_error(self) -> str | None:
        """Return why the last load failed; None if it succeeded."""
        found = _read(self._directory, _FAILED).get("error")
        return found if isinstance(found, str) else None

    def read_loaded(self) -> int | None:
        """Return the id of the cgroup that the last `load` recorded; None if there is no record."""
        found = _read(self._directory, _LOADED).get("cgroup")
        return found if isinstance(found, int) else None

    def read_neighbours(self) -> list[Neighbour]:
        """Return the other instances that the last `load` recorded."""
        return remembered(_read(self._directory, _LOADED).get("neighbours"))

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state of the sidecar.

        :raises HostError: if it cannot be written.
        """
        path = self._directory / _STATE
        try:
            with self._opened() as directory:
                place = Place(directory, _STATE)
                if _owner(place) not in {None, os.geteuid()}:  # of another user; it may be replaced
                    with suppress(OSError):
                        os.unlink(_STATE, dir_fd=directory)
                replace_file(place, json.dumps(state).encode(), lasting=False)  # /run does not survive a reboot
        except PermissionError as error:  # a file of root, from a time when the sidecar ran as root
            raise HostError(f"{path} belongs to another user; remove it as root") from error
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}; is the file system full?") from error

    def read_state(self) -> dict[str, Any]:
        """Return the last state of the sidecar, of any shape inside; empty if there is none.

        :raises HostError: if it cannot be read.
        """
        return self._read_state(_STATE)

    def _read_state(self, record: str) -> dict[str, Any]:
        try:
            return _parsed(self._directory, record)
        except OSError as error:
            raise self._unreadable(record, error.strerror or type(error).__name__) from error
        except ValueError as error:
            raise self._unreadable(record, str(error)) from None
        except RecursionError:
            raise self._unreadable(record, "it is nested too deeply") from None

    def _unreadable(self, record: str, reason: str) -> HostError:
        return HostError(f"cannot read the sidecar's state, {self._directory / record}: {reason}")

    @contextmanager
    def as_writer(self, record: str) -> Iterator[None]:
        """Act as the user that wrote one of `RECORDS` while the block runs; that user may be less trusted than we."""
        try:
            found = (self._directory / record).lstat()
        except OSError:
            yield
            return
        with acting_as(found.st_uid, found.st_gid):
            yield

    def hosts_files(self, record: str) -> list[Path]:
        """Return the hosts files that may have names of this instance, by one of `RECORDS`.

        :raises HostError: if the state cannot be read, with what to do then.
        """
        try:
            paths = self._read_state(record).get("hosts_files", [])
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise self._unreadable(record, "'hosts_files' is not a list of texts")
        except HostError as error:
            fix = f"if --hosts-file was used, remove the block of instance {self.name} from that file"
            raise HostError(f"{error}; {fix}") from None
        return [Path(path) for path in paths]

    def forget(self) -> None:
        """Remove the state files. The lock file stays, because a new one would allow a second holder."""
        with self._opened() as directory:
            for name in (*RECORDS, _LOADED, _FAILED, _TAKES_OVER):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)

    @contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        with safe_directory(self._directory, make=make, shared=True) as directory:
            yield directory


def _open_lock(place: Place) -> int:
    """Open a lock file; a missing one is created, in a directory that `share` has given to a group as `share` does.

    An existing file is opened without O_CREAT, because in a sticky directory the kernel may refuse that even to root if
    the file belongs to another user (fs.protected_regular of proc_sys_fs(5)).
    """
    with suppress(FileExistsError):
        # A process that can read the file can lock it and so block our lock.
        lock = os.open(place.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OURS, 0o600, dir_fd=place.directory)
        directory = os.fstat(place.directory)
        if place.name == _LOCK and directory.st_mode & stat.S_IWGRP:
            with suppress(OSError):  # a process that cannot share it keeps it for itself
                _give(lock, directory.st_gid, _SHARED_LOCK)
        return lock
    return os.open(place.name, os.O_RDWR | _OURS, dir_fd=place.directory)


def _give(fd: int, group: int, mode: int) -> None:
    """Give a file to a group. What is so already is not set again, because not every process has the right to.

    The sidecar's unit forbids chown(2), and root without capabilities cannot change a file of another user.
    """
    found = os.fstat(fd)
    if found.st_gid != group:
        os.chown(fd, -1, group)
    if stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(fd, mode)


def _owner(place: Place) -> int | None:
    """Return the user that owns a file; None if it does not exist."""
    try:
        return os.stat(place.name, dir_fd=place.directory, follow_symlinks=False).st_uid
    except OSError:
        return None


def _read(path: Path, name: str) -> dict[str, Any]:
    """Return an object of JSON; empty if there is none, or it cannot be read."""
    try:
        return _parsed(path, name)
    except (OSError, ValueError, RecursionError):
        return {}


def _parsed(path: Path, name: str) -> dict[str, Any]:
    """Return an object of JSON; empty if there is no file. Its writer may be less trusted than the reader.

    :raises OSError: if it cannot be opened.
    :raises ValueError: if it is not an object of JSON, or too large; the message continues after the file's name.
    :raises RecursionError: if it is nested too deeply.
    """
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        content = read_file(Place(directory, name), _MOST_STATE)
    except ValueError as error:
        raise ValueError(f"it {error}") from None
    finally:
        os.close(directory)
    found = {} if content is None else json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("it is not an object of JSON")  # noqa: TRY004 - as for other content that is not as it should be
    return found


def _lock_bytes(lock: int, part: _Bytes) -> bool:
    """Try to take a lock; return whether it was free."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, part.length, part.start)
    except OSError:
        return False
    return True


def _holder(lock: int, part: _Bytes) -> int | None:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, part.start, part.length, 0)
    kind, _, _, _, process = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, question))
    return None if kind == fcntl.F_UNLCK else process
