"""The names of services in the hosts file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from clb_discovery.datapath.instance import RECORDS, Instance
from clb_discovery.errors import HostError
from clb_discovery.hosts_file.block import names
from clb_discovery.hosts_file.file import real_path, remove_names, write_names
from clb_discovery.layout.installed import Installed
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.disk import Disk

_FIRST_PAUSE: Final = 2.0  # seconds until the next try after a failure; it doubles
_LONGEST_PAUSE: Final = 60.0

_log = structlog.stdlib.get_logger()


class HostsFile:
    """The names of an instance's services, in the file of `--hosts-file`."""

    def __init__(self, instance: Instance, announcer: Announcer, disk: Disk) -> None:
        self._instance = instance  # it remembers the files of the previous sidecar
        self._announcer = announcer
        self._disk = disk
        self._path: Path | None = None
        self._left: set[Path] = set()  # other files, from which the names have to go
        self._pause = 0.0  # after the last try, if it failed
        self._next_try = 0.0

    def use(self, path: Path | None) -> None:
        """Publish names in this file from now on, and remove them from others."""
        for record in RECORDS:
            try:
                self._left.update(self._instance.hosts_files(record))
            except HostError as error:
                self._announcer.trouble("cannot remove previously published names", str(error))
        if self._path:
            self._left.add(real_path(self._path))
        self._path = path
        self._pause = self._next_try = 0.0
        if path:
            self._left.discard(real_path(path))

    @property
    def files(self) -> list[str]:
        """The files that may have names, which the next sidecar and `unload` have to know."""
        return sorted(map(str, [*self._left, *([real_path(self._path)] if self._path else [])]))

    def is_due(self, now: float) -> bool:
        """Tell whether to publish: each failed try costs a sync to disk, so there are ever fewer.

        :param now: seconds on a clock that does not go backwards.
        """
        return bool(self._path or self._left) and now >= self._next_try

    async def publish(self, installed: Installed, now: float) -> None:
        """Write the names of all services, even if another program has rewritten the file, and clean the other files.

        `use` may be called meanwhile: the next call does the rest.

        :param now: as for `is_due`.
        :raises HostError: as `write_names`, when the others are clean, or cannot be cleaned now.
        """
        pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
        self._pause, self._next_try = pause, now + pause
        await self._publish(installed)
        self._pause = self._next_try = 0.0

    async def _publish(self, installed: Installed) -> None:
        path = self._path
        await self._clean()
        if path is None:
            return
        found = await self._disk.call(names, installed.virtual)
        self._announcer.nameless(found.left_out)
        if await self._disk.call(write_names, path, self._instance.name, found.addresses):
            _log.info("names published", file=str(path), names=len(found.addresses))

    async def _clean(self) -> None:
        """Remove the names from the other files; the next call tries again what this one cannot."""
        files = sorted(self._left)
        left = await self._disk.call(remove_names, files, self._instance.name) if files else {}
        self._left -= set(files) - left.keys()
        self._announcer.trouble("cannot remove previously published names", "; ".join(left.values()) or None)
