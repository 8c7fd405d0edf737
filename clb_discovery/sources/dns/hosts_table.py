"""Read /etc/hosts, as the `files` service of nsswitch.conf does, and read it again when it changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from clb_discovery.model.address import Address, parse_address
from clb_discovery.sources.file_state import FileState, file_state

HOSTS: Final = Path("/etc/hosts")
_LOCALHOST: Final = (parse_address("127.0.0.1"), parse_address("::1"))
_LARGEST: Final = 64 << 20
"""Bytes; block lists of some megabytes are usual."""

_log = structlog.stdlib.get_logger()


def parse_hosts(text: str) -> dict[str, tuple[Address, ...]]:
    """Parse hosts(5): an address, then its names; `#` starts a comment. Other lines are ignored, as in glibc.

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
    """The current contents of the hosts file."""

    def __init__(self, path: Path = HOSTS) -> None:
        """Prepare; nothing is read yet."""
        self._path = path
        self._seen: FileState = ()
        self._known: Mapping[str, tuple[Address, ...]] = {}

    def current(self) -> Mapping[str, tuple[Address, ...]]:
        """Return the addresses by name in lower case; `localhost` is always among the names.

        A file that is missing or cannot be read counts as empty, as in glibc.
        """
        try:
            seen = file_state(self._path)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    self._known = parse_hosts(file.read(_LARGEST).decode("utf-8", "replace"))
                self._seen = seen
                _log.debug("hosts file was read", file=str(self._path), names=len(self._known))
        except OSError:
            self._known, self._seen = {}, ()
        return self._known if "localhost" in self._known else {**self._known, "localhost": _LOCALHOST}
