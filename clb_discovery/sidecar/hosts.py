"""The names of services in the hosts file."""

from __future__ import annotations

from pathlib import Path

import structlog

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import HostError
from clb_discovery.hosts_file.block import names
from clb_discovery.hosts_file.file import real_path, write_names
from clb_discovery.layout.installed import Installed
from clb_discovery.sidecar.announcer import Announcer

_log = structlog.stdlib.get_logger()


class HostsFile:
    """The names of an instance's services, in the file of `--hosts-file`."""

    def __init__(self, instance: Instance, announcer: Announcer) -> None:
        self._instance = instance  # it remembers the file of the previous sidecar
        self._announcer = announcer

    def leave(self, path: Path | None) -> None:
        """Remove the names from the file that was written last, if this is another one, or none."""
        before = self._instance.hosts_file()
        if before is None or (path and before == real_path(path)):
            return
        try:
            write_names(before, self._instance.name, {})
        except HostError as error:
            _log.warning("cannot remove previously published names", error=str(error))

    def publish(self, path: Path, installed: Installed) -> None:
        """Write the names of all services, even if another program has rewritten the file; raises as `write_names`."""
        found = names(installed.virtual)
        self._announcer.nameless(found.left_out)
        if write_names(path, self._instance.name, found.addresses):
            _log.info("names published", file=str(path), names=len(found.addresses))
