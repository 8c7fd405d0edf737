"""The last good sets on disk: what a sidecar serves that starts while discovery is down, such as after a reboot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from clb_discovery.core.lastgood import MAX_BYTES, LastGood, decode, encode
from clb_discovery.errors import HostError
from clb_discovery.files import replace_file

WRITE_EVERY: Final = 1.0
"""Least seconds between two writes."""

_log = structlog.stdlib.get_logger()


class Store:
    """One instance's file in the state directory; without a directory nothing is read or written."""

    def __init__(self, directory: Path | None, instance: str) -> None:
        """Name the file; nothing is touched yet.

        :param instance: checked by `Pins` before.
        """
        self._file = directory / f"{instance}.json" if directory else None
        self._written: Mapping[str, LastGood] = {}
        self._next = 0.0

    def read(self) -> dict[str, LastGood]:
        """Return what was written last, by the name of the source; a file that cannot be used is a warning."""
        if self._file is None:
            return {}
        try:
            with self._file.open("rb") as file:
                return decode(file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            return {}
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError as error:
            reason = str(error)
        _log.warning("last known sets on disk ignored", file=str(self._file), reason=reason)
        return {}

    def is_due(self, applied: Mapping[str, LastGood], now: float) -> bool:
        """Tell whether anything but a time has changed since it was written, and a write is not too soon.

        :param applied: what counts of each source, without the time.
        :param now: seconds on a clock that does not go backwards.
        """
        return self._file is not None and now >= self._next and applied != self._written

    def write(self, sets: Mapping[str, LastGood], now: float) -> None:
        """Replace the file, for good.

        :param now: as for `is_due`.
        :raises HostError: if it cannot be written. The next try is due as usual.
        :raises ValueError: if there is too much to write.
        """
        if self._file is None:
            return
        self._next = now + WRITE_EVERY
        document = encode(sets)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, document, lasting=True)
        except OSError as error:
            raise HostError(
                f"cannot write {self._file}: {error.strerror}; --state-dir takes a writable directory with room"
            ) from error
        self._written = {source: one._replace(answered=None) for source, one in sets.items()}
