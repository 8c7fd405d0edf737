"""The hosts files that may have names of the last sidecar, for commands."""

from __future__ import annotations

import sys
from pathlib import Path

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import HostError


def published_files(instance: Instance) -> list[Path]:
    """Return the files; print a warning if the state that names them cannot be read."""
    try:
        return instance.hosts_files()
    except HostError as error:
        print(f"clb-discovery: warning: {error}", file=sys.stderr)  # noqa: T201 - the command goes on
        return []
