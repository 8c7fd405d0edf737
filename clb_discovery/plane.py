"""The data plane as the sidecar finds it: loaded by itself, or with `--loader none` by `clb-discovery load`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clb_discovery.core.layout import LAYOUT
from clb_discovery.datapath import cgroup as cgroups
from clb_discovery.datapath import handover, loader, selftest
from clb_discovery.datapath.loader import Loader
from clb_discovery.datapath.maps import Maps, read_info
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import HostError
from clb_discovery.runtime import Instance


class Plane(Protocol):
    """Who loads it, and what the sidecar can find out about it."""

    loads: bool
    """Whether the sidecar does so itself."""

    @property
    def cgroup(self) -> Path:
        """The cgroup whose connects are balanced."""

    def bring_up(self) -> None:
        """Make sure that it is there.

        :raises HostError: naming what is missing, and the way out.
        """

    def open(self) -> Maps:
        """Open its maps; raises as `bring_up`."""

    def is_lost(self) -> bool:
        """Tell whether it has to be brought up again, and the maps opened again.

        :raises HostError: if it does not do its work, and bringing it up would not help.
        """

    def objection(self) -> str | None:
        """Return why connects are not balanced as they should be, or None if they are."""


class OwnPlane:
    """A data plane that the sidecar loads, attaches, and attaches again."""

    loads = True

    def __init__(self, pins: Pins, cgroup: Path, wanted: Loader) -> None:
        """Name it; nothing is touched yet."""
        self._pins = pins
        self.cgroup = cgroup
        self._loader = wanted

    def bring_up(self) -> None:
        """Load and attach what is not there."""
        loader.load(self._pins, self.cgroup, self._loader)

    def open(self) -> Maps:
        """Open the maps."""
        return Maps(self._pins)

    def is_lost(self) -> bool:
        """Tell whether pins are gone, or the cgroup was removed and made anew."""
        if not self.cgroup.exists():
            raise HostError(f"{self.cgroup} is gone; it is attached again when it is back")
        return not loader.is_attached(self._pins, self.cgroup)

    def objection(self) -> str | None:
        """Look at the links, and prove it by a connect inside the cgroup."""
        return loader.objection(self._pins, self.cgroup)

    def retire_others(self) -> None:
        """Remove what versions with another layout have left, now that our own maps hold every pool."""
        self._pins.remove_other_layouts()


class LoadedPlane:
    """A data plane that root loads and attaches by `clb-discovery load`, and that the sidecar only writes.

    It may not open links. What is attached it asks the cgroup, and compares that with what the loader left; the proof
    by a connect it can only make where it is in the cgroup itself.
    """

    loads = False

    def __init__(self, pins: Pins) -> None:
        """Name it; nothing is touched yet."""
        self._pins = pins
        self._instance = Instance(pins.instance)
        self._opened: tuple[int, ...] = ()

    @property
    def cgroup(self) -> Path:
        """The cgroup that the loader named, which it does when all is done."""
        info = read_info(self._pins)
        if info is None:
            raise HostError(f"a load is under way, or was cut off; then run: {self._load}")
        return Path(info.cgroup)

    def bring_up(self) -> None:
        """Make sure that there are maps of our layout."""
        if self._pins.have_maps():
            return
        others = ", ".join(path.name for path in self._pins.other_layouts())
        found = f"is loaded with layout {others}, and this version takes v{LAYOUT}" if others else "is not loaded"
        raise HostError(f"the data plane of instance {self._pins.instance!r} {found}; run: {self._load}")

    def open(self) -> Maps:
        """Open the maps that a writer needs."""
        self.bring_up()
        opened = self._identity()
        maps = Maps(self._pins, handed_over=True)
        self._opened = opened
        return maps

    def is_lost(self) -> bool:
        """Tell whether other maps are pinned now than were opened last."""
        self.bring_up()
        reason = self._unattached()
        if self._identity() != self._opened:
            return True
        if reason:
            raise HostError(reason)
        return False

    def objection(self) -> str | None:
        """Ask the cgroup, and prove it by a connect of our own where we are inside."""
        try:
            reason = self._unattached()
        except HostError as error:
            return str(error)
        if reason is None and cgroups.contains_self(self.cgroup):
            return selftest.run(self._pins.instance, self.cgroup)
        return reason

    def _unattached(self) -> str | None:
        target = self.cgroup
        programs = self._instance.read_loaded()
        if programs is None:
            return f"nobody has left what is attached to {target}; run: {self._load}"
        if not target.exists():
            return f"{target} is gone; when it is back, run: {self._load} --cgroup {target}"
        if not handover.are_attached(programs, target):
            return f"not every program is attached to {target}; run: {self._load} --cgroup {target}"
        return None

    @property
    def _load(self) -> str:
        return f"clb-discovery load --instance {self._pins.instance}"

    def _identity(self) -> tuple[int, ...]:
        return tuple(self._pins.map(map_).stat().st_ino for map_ in handover.WRITER)
