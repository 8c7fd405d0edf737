"""Secrets that others replace while the sidecar runs: read again when their files have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from clb_discovery.errors import UsageError

_T = TypeVar("_T")

_log = structlog.stdlib.get_logger()


class SecretFile(Generic[_T]):
    """What some files say, as of now; while they say nothing of use, what they said before."""

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], _T]) -> None:
        """Read for the first time.

        :param what: for the log.
        :param files: that `read` reads; links are followed, so that whatever they lead to may be replaced, too.
        :param read: raises `UsageError`, without a secret in it, where the files are of no use.
        :raises UsageError: if they are of no use now.
        """
        self._what = what
        self._files = files
        self._read = read
        self._seen = self._look()
        self._value = read()

    def get(self) -> _T:
        """Return what the files say; they are looked at each time, and read where they have changed."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._value = self._read()
            except UsageError as error:
                _log.warning("secret not read again; the one of before stays", what=self._what, error=str(error))
            else:
                _log.info("secret read again", what=self._what)
        return self._value

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
