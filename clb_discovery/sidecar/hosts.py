"""Names of services in the hosts file, published by the sidecar."""

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
    """The names of an instance's services, in the file that the settings name."""

    def __init__(self, instance: Instance, announcer: Announcer) -> None:
        """Take where the file of the last sidecar is remembered, and who says what happens."""
        self._instance = instance
        self._announcer = announcer

    def leave(self, path: Path | None) -> None:
        """Take the names out of the file that was written last, if this is another, or none."""
        before = self._instance.hosts_file()
        if before is None or (path and before == real_path(path)):
            return
        try:
            write_names(before, self._instance.name, {})
        except HostError as error:
            _log.warning("cannot remove the names of before", error=str(error))

    def publish(self, path: Path, installed: Installed) -> None:
        """Make the file name what the kernel balances, also where another program has written it anew.

        :raises HostError: naming the file, the cause and the way out.
        """
        found = names(installed.virtual)
        self._announcer.nameless(found.left_out)
        if write_names(path, self._instance.name, found.addresses):
            _log.info("names published", file=str(path), names=len(found.addresses))
