"""The hosts files that may have names of an instance, for commands."""

from __future__ import annotations

from pathlib import Path

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import HostError
from clb_discovery.stderr import say


def published_files(instance: Instance, record: str) -> set[Path]:
    """Return the files that one of `RECORDS` lists; print a warning if it cannot be read."""
    try:
        return set(instance.hosts_files(record))
    except HostError as error:
        say(f"clb-discovery: warning: {error}")
        return set()
