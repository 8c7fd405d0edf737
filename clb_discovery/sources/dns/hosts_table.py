"""/etc/hosts, as the `files` service of nsswitch.conf reads it. Pure reading, and one file that is read again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from clb_discovery.model.address import Address, parse_address

HOSTS: Final = Path("/etc/hosts")
_LOCALHOST: Final = (parse_address("127.0.0.1"), parse_address("::1"))
_LARGEST: Final = 64 << 20
"""Bytes; block lists of some megabytes are usual."""

_log = structlog.stdlib.get_logger()


def parse_hosts(text: str) -> dict[str, tuple[Address, ...]]:
    """Read hosts(5): an address, then its names; `#` begins a comment. Other lines are passed over, as glibc does.

    :return: addresses by name in lower case, each once, in the order of the file.
    """
    found: dict[str, dict[Address, None]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            address = parse_address(words[0].partition("%")[0])
        except ValueError:
            continue
        for name in words[1:]:
            found.setdefault(name.lower(), {})[address] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


class HostsTable:
    """The hosts file as it is now."""

    def __init__(self, path: Path = HOSTS) -> None:
        """Read nothing yet."""
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._known: Mapping[str, tuple[Address, ...]] = {}

    def current(self) -> Mapping[str, tuple[Address, ...]]:
        """Return the addresses by name in lower case; `localhost` is always there.

        A file that is missing or cannot be read is an empty one, as for glibc.
        """
        try:
            stat = os.stat(self._path)  # noqa: PTH116 -- follows links, as open does
            seen = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    self._known = parse_hosts(file.read(_LARGEST).decode("utf-8", "replace"))
                self._seen = seen
                _log.debug("hosts file was read", file=str(self._path), names=len(self._known))
        except OSError:
            self._known, self._seen = {}, ()
        return self._known if "localhost" in self._known else {**self._known, "localhost": _LOCALHOST}
