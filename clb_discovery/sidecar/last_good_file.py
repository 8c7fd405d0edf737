"""The last good sets on disk: a sidecar that starts while discovery is down serves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from clb_discovery.errors import HostError
from clb_discovery.files import Place, read_file, replace_file, safe_directory
from clb_discovery.state.last_good import MAX_BYTES, LastGood, decode, encode

WRITE_EVERY: Final = 1.0
"""Least seconds between two writes."""

_log = structlog.stdlib.get_logger()


class Store:
    """The file of one instance in the state directory; without a directory nothing is read or written."""

    def __init__(self, directory: Path | None, instance: str) -> None:
        self._directory = directory
        self._name = f"{instance}.json"
        self.zone: str | None = None
        """The zone of the host that was read."""
        self._written: tuple[Mapping[str, LastGood], str | None] = {}, None
        self._next = 0.0

    def read(self) -> dict[str, LastGood]:
        """Return the sets that were written last, by the name of the source; an unusable file is a logged warning."""
        if self._directory is None:
            return {}
        try:
            content = self._content(self._directory)
            if content is None:
                return {}
            sets, self.zone = decode(content)
        except FileNotFoundError:
            return {}
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except (HostError, ValueError) as error:
            reason = str(error)
        else:
            return sets
        _log.warning("saved last known good sets ignored", file=str(self._directory / self._name), reason=reason)
        return {}

    def _content(self, path: Path) -> bytes | None:
        with safe_directory(path) as directory:
            try:
                return read_file(Place(directory, self._name), MAX_BYTES)
            except ValueError as error:
                raise ValueError(f"it {error}") from None

    def is_due(self, applied: Mapping[str, LastGood], now: float, zone: str | None = None) -> bool:
        """Tell whether to write: there are changes, apart from the times of sets, and the last write is not too new.

        :param zone: of the host, if the agent has named it.
        """
        return self._directory is not None and now >= self._next and (applied, zone) != self._written

    def write(self, sets: Mapping[str, LastGood], now: float, zone: str | None = None) -> None:
        """Replace the file, and wait until it is on disk.

        :param zone: as for `is_due`.
        :param now: seconds on a clock that does not go backwards, as for `is_due`.
        :raises HostError: if it cannot be written. The next try is due as usual.
        :raises ValueError: if there is too much to write.
        """
        if self._directory is None:
            return
        self._next = now + WRITE_EVERY
        document = encode(sets, zone)
        file = self._directory / self._name
        try:
            with safe_directory(self._directory, make=True) as directory:
                replace_file(Place(directory, self._name), document, lasting=True)
        except HostError as error:
            raise HostError(f"cannot write {file}: {error}") from None
        except OSError as error:
            raise HostError(
                f"cannot write {file}: {error.strerror}; --state-dir needs a writable directory with free "
                "space; its parent directory must exist"
            ) from error
        self._written = {source: one._replace(answered=None) for source, one in sets.items()}, zone
