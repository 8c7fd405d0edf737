"""The lock of the one writer of an instance's maps, beside the maps.

The lock in /run (`instance.Instance`) names its holder, but keeps nobody away that has another /run: two containers
that share the BPF file system would both give rows and servers to their pools, each over those of the other. flock(2)
also works on a directory of the BPF file system, and in all namespaces. Only a user that can write the maps can open
it.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import BusyError, HostError
from clb_discovery.hints import AS_WRITER

_PAUSES: Final = (0, 0.02, 0.05)
"""Seconds before each try to take the lock."""


class WriterLock:
    """The lock of one instance, for all layouts: versions that write at the same time undo each other's handover."""

    def __init__(self, pins: Pins) -> None:
        """Name it; nothing is locked yet."""
        self._pins = pins
        self._held: int | None = None

    def take(self, *, make: bool = False) -> None:
        """Take it, or keep it. There is none before the first load, nor after one of a version without this lock.

        :param make: make it if there is none.
        :raises BusyError: if another process holds it; one that we hold on pins that were removed stays.
        :raises HostError: if we are not allowed to lock it.
        """
        if make:
            self._pins.create_writer_lock()
        found = self._open()
        if found is None:
            return
        try:
            if self._held is not None and os.path.samestat(os.fstat(found), os.fstat(self._held)):
                return
            if not self._lock(found):
                raise BusyError(
                    f"the maps of instance {self._pins.instance!r} have another writer, with a /run of its own, such "
                    "as in another container; stop it, or use another --instance"
                )
            found, self._held = self._held, found
        finally:
            if found is not None:
                os.close(found)

    def close(self) -> None:
        """Let go of it, if it is held."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def is_free(self) -> bool:
        """Tell whether no process holds it; raises HostError as `take`."""
        found = self._open()
        if found is None:
            return True
        try:
            return self._lock(found)
        finally:
            os.close(found)

    def _open(self) -> int | None:
        try:
            return os.open(self._pins.writer_lock, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot open {self._pins.writer_lock}: {error.strerror}; {AS_WRITER}") from error

    def _lock(self, fd: int) -> bool:
        """Try to lock it; return whether it was free. `is_free` of another process holds it for a moment."""
        for pause in _PAUSES:
            time.sleep(pause)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError as error:
                raise HostError(
                    f"cannot lock {self._pins.writer_lock}: {error.strerror}; does a system call filter forbid flock?"
                ) from error
            return True
        return False
