"""The hosts files that may have names of an instance, for commands."""

from __future__ import annotations

import sys
from pathlib import Path

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import HostError


def published_files(instance: Instance, record: str) -> set[Path]:
    """Return the files that one of `RECORDS` lists; print a warning if it cannot be read."""
    try:
        return set(instance.hosts_files(record))
    except HostError as error:
        print(f"clb-discovery: warning: {error}", file=sys.stderr)  # noqa: T201 - the command goes on
        return set()
