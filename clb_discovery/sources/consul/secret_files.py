"""Secrets in files: they are read again when the files change while the sidecar runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from clb_discovery.errors import HostError
from clb_discovery.sources.file_state import FileState, file_state

_T = TypeVar("_T")

_log = structlog.stdlib.get_logger()


class SecretFile(Generic[_T]):
    """A secret from some files: the current one, or the previous one while the files cannot be used."""

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], _T]) -> None:
        """Read for the first time.

        :param what: its name in the log.
        :param files: the files that `read` reads; symbolic links are followed, so their targets may be replaced, too.
        :param read: reads the files; raises `HostError`, without a secret in it, if they cannot be used.
        :raises HostError: if they cannot be used now. It is no `UsageError`, because another program may write them
            later, and the units start a sidecar again after any other error.
        """
        self._what = what
        self._files = files
        self._read = read
        self._seen = self._look()
        self._value = read()

    def get(self) -> _T:
        """Return the secret; check the files each time, and read them again if they have changed."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._value = self._read()
            except HostError as error:
                _log.warning("secret reload failed; keeping the previous one", what=self._what, error=str(error))
            else:
                _log.info("secret reloaded", what=self._what)
        return self._value

    def _look(self) -> list[FileState | None]:
        return [_state(file) for file in self._files]


def _state(file: Path) -> FileState | None:
    try:
        return file_state(file)
    except OSError:
        return None
