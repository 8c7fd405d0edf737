"""The run-time directory of an instance: the lock of its one writer, and what the sidecar says about itself.

`/run/clb-discovery/<instance>/lock` carries a POSIX record lock (fcntl(2)) for as long as somebody may write the maps,
so that anybody can ask who without taking it; `state.json` is replaced whenever the sidecar's knowledge changes, and
stays when it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from clb_discovery.errors import BusyError, HostError
from clb_discovery.files import replace_file

RUN: Final = Path("/run/clb-discovery")

_FLOCK: Final = struct.Struct("@hhqqi")  # struct flock: type, whence, start, length, process


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
        self._lock = self._directory / "lock"
        self._state = self._directory / "state.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the instance as its only writer while the block runs.

        :raises BusyError: if another process holds it.
        :raises HostError: if the directory cannot be used.
        """
        with self._locked(self._lock, "stop it, or use another --instance"):
            yield

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Be the only one who traces the instance while the block runs; raises as `held`."""
        with self._locked(self._directory / "trace", "it is the one that traces"):
            yield

    @contextmanager
    def _locked(self, path: Path, way_out: str) -> Iterator[None]:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Whoever may read the file may take a lock of its own, and keep us from ours.
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"cannot use {self._directory}: {error.strerror}; run as root") from error
        try:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BusyError(f"instance {self.name!r} is held by process {_holder(lock)}; {way_out}") from error
            yield
        finally:
            os.close(lock)

    def holder(self) -> int | None:
        """Return the process that holds the instance, or None. Not for the holder itself: it would lose the lock."""
        try:
            lock = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return _holder(lock)
        finally:
            os.close(lock)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace what the sidecar says about itself.

        :raises OSError: if it cannot be written.
        """
        replace_file(self._state, json.dumps(state).encode(), lasting=False)  # no reboot leaves anything in /run

    def read_state(self) -> dict[str, Any]:
        """Return what the sidecar said last; empty if nothing, or nothing that can be read."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def hosts_file(self) -> Path | None:
        """Return where the sidecar published names last, or None."""
        path = self.read_state().get("hosts_file")
        return Path(path) if isinstance(path, str) else None

    def forget(self) -> None:
        """Remove the state; the lock file stays, since a new one would let a second holder in."""
        self._state.unlink(missing_ok=True)


def _holder(lock: int) -> int | None:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, process = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, question))
    return None if kind == fcntl.F_UNLCK else process
