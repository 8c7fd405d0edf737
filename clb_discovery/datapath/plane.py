"""The data plane from the view of the sidecar: loaded by itself, or with `--loader none` by `clb-discovery load`."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from clb_discovery.datapath import cgroup as cgroups
from clb_discovery.datapath import closer, handover, selftest
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.loading.sizes import Sizes
from clb_discovery.datapath.maps import Maps, read_info
from clb_discovery.datapath.neighbours import find_overlaps
from clb_discovery.datapath.pins import OUTCOMES, Pins
from clb_discovery.datapath.sockets.closing import Destroyed, close_sockets
from clb_discovery.datapath.writer_lock import WriterLock
from clb_discovery.errors import HostError, RemovedError
from clb_discovery.hints import load_command, outcomes_command
from clb_discovery.layout.structs import LAYOUT
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.servers import Protocol

_ASK_AGAIN_AFTER: Final = 10.0
"""Seconds after which a service of root's that has not done its work is started again."""


class Plane(ABC):
    """The data plane: how it is loaded, and its state."""

    loads: bool
    """Whether the sidecar itself loads it."""

    def __init__(self, pins: Pins) -> None:
        """Name it; nothing is touched yet."""
        self._pins = pins
        self._instance = Instance(pins.instance)
        self._lock = WriterLock(pins)
        self._opened: tuple[int, ...] = ()

    @property
    @abstractmethod
    def cgroup(self) -> Path:
        """The cgroup whose connects are balanced."""

    @asynccontextmanager
    async def coming_up(self) -> AsyncIterator[None]:
        """Bring it up while the block runs: that takes the kernel as long as the sidecar needs for its first answers.

        If the block fails, a new load is undone, and the exception of the block is raised even if loading failed, too.

        :raises HostError: as `bring_up`.
        """
        coming = asyncio.get_running_loop().run_in_executor(None, self.bring_up)
        try:
            yield
        except BaseException:
            await asyncio.wait([coming])
            if not coming.exception():
                self._take_back()
            raise
        await coming

    @abstractmethod
    def bring_up(self) -> None:
        """Make sure that it is loaded, and lock its maps, before they are opened.

        :raises BusyError: if they have another writer.
        :raises HostError: naming the cause and the fix.
        """

    @abstractmethod
    def _take_back(self) -> None:
        """Undo `bring_up` if nothing was loaded before it; raises as `bring_up`."""

    @abstractmethod
    def open(self) -> Maps:
        """Open its maps; raises as `bring_up`."""

    def let_go(self) -> None:
        """Let another process write its maps. What is published stays."""
        self._lock.close()

    @abstractmethod
    def is_lost(self) -> bool:
        """Tell whether it has to be brought up again and its maps have to be reopened.

        :raises HostError: if it does not work and bringing it up does not help.
        """

    @abstractmethod
    def objection(self) -> str | None:
        """Return why connects are not balanced as they should be, or None if they are."""

    def overlaps(self) -> Sequence[Overlap]:
        """Return other instances that serve the same VIPs, as far as we can read them; raises as `bring_up`."""
        return find_overlaps(self._pins, self.cgroup)

    def other_layouts(self) -> Sequence[int]:
        """Return the other layouts of the instance, whose programs run before ours, as far as we can see."""
        return self._pins.other_layout_numbers()

    @abstractmethod
    def follows_outcomes(self) -> bool:
        """Tell whether the program that learns how TCP connects end is attached, as far as we can see."""

    @abstractmethod
    def follow_outcomes(self) -> None:
        """Make sure that it is attached.

        :raises HostError: naming the cause and the fix.
        """

    @abstractmethod
    def leave_outcomes(self) -> None:
        """Detach it, unless `trace` needs it; raises as `bring_up`."""

    @abstractmethod
    def is_traced(self) -> bool:
        """Tell whether `trace` runs and relies on us to follow outcomes."""

    @abstractmethod
    def settle(self) -> bool:
        """Have the programs of other layouts removed, once our maps serve; raises as `bring_up`.

        Return whether they are gone. If not, or if it raises, it is called again.
        """

    async def request_closing(
        self,
        members: Collection[bytes],  # noqa: ARG002 - of those that have a service
        protocols: Collection[Protocol],  # noqa: ARG002
    ) -> Destroyed | None:
        """Let a service close sockets of removed real servers, as `closer.ask`; None if there is none."""
        return None

    @abstractmethod
    def close_sockets(self, members: Collection[bytes], maps: Maps, protocols: Collection[Protocol]) -> Destroyed:
        """Close sockets of removed real servers in this process; as `sockets.closing.close_sockets`."""

    def _remember_maps(self) -> None:
        """Remember which maps are pinned: those that are opened next."""
        self._opened = self._pinned()

    def _has_other_maps(self) -> bool:
        """Tell whether the pinned maps are not those that were opened last."""
        try:
            return self._pinned() != self._opened
        except FileNotFoundError:
            return True

    def _pinned(self) -> tuple[int, ...]:
        return tuple(self._pins.map(map_).stat().st_ino for map_ in handover.WRITER)


class OwnPlane(Plane):
    """A data plane that the sidecar loads and attaches, and reattaches if necessary."""

    loads = True

    def __init__(self, pins: Pins, cgroup: Path, wanted: Loader, room: Sizes | None = None) -> None:
        """Name it; nothing is touched yet.

        :param room: the sizes of new maps.
        """
        super().__init__(pins)
        self._cgroup = cgroup
        self._loader = wanted
        self._room = room
        self._is_new = False

    @property
    def cgroup(self) -> Path:
        """The cgroup that the settings name."""
        return self._cgroup

    def bring_up(self) -> None:
        """Load and attach whatever is missing, except the program that learns outcomes; a publication attaches it."""
        self._lock.take(make=True)
        try:
            with self._instance.noting_failed_load():
                self._is_new = loader.load(self._pins, self._cgroup, self._loader, room=self._room, outcomes=False)
        except BaseException:
            if not self._pins.layouts():
                self._pins.remove()  # the lock alone is left
            raise
        self._remember_maps()

    def _take_back(self) -> None:
        """Unload it."""
        if self._is_new:
            loader.unload(self._pins)

    def open(self) -> Maps:
        """Open the maps."""
        return Maps(self._pins)

    def is_lost(self) -> bool:
        """Tell whether pins are gone or others, as after a mount, or the cgroup was removed and recreated."""
        if not self._cgroup.exists():
            raise HostError(f"{self._cgroup} is gone; the programs are attached again when it exists")
        return not loader.is_attached(self._pins, self._cgroup) or self._has_other_maps()

    def follows_outcomes(self) -> bool:
        """Look at its link."""
        return loader.follows_outcomes(self._pins, self._cgroup)

    def follow_outcomes(self) -> None:
        """Attach it."""
        loader.follow_outcomes(self._pins, self._cgroup)

    def leave_outcomes(self) -> None:
        """Detach it, and let no trace begin meanwhile."""
        loader.leave_outcomes_unless_traced(self._pins)

    def is_traced(self) -> bool:
        """Look at the lock of tracing. A trace cannot attach it by itself, because we hold the lock for loading."""
        return self._instance.tracer() is not None

    def settle(self) -> bool:
        """Remove them: they run before ours and have served connects until now."""
        self._pins.remove_other_layouts()
        return True

    def close_sockets(self, members: Collection[bytes], maps: Maps, protocols: Collection[Protocol]) -> Destroyed:
        """Close them with our own privileges."""
        return close_sockets(members, maps.records(), protocols=protocols)

    def objection(self) -> str | None:
        """Check the links, and test by a connect inside the cgroup."""
        return loader.objection(self._pins, self._cgroup)


class LoadedPlane(Plane):
    """A data plane that root loads and attaches by `clb-discovery load`; the sidecar only writes its maps.

    The sidecar is not allowed to open links. To check that they are on the present cgroup, it uses the record of the
    loader. It can make the test connect only if it is in the cgroup itself. `status`, as root, checks everything.
    """

    loads = False

    def __init__(self, pins: Pins) -> None:
        """Name it; nothing is touched yet."""
        super().__init__(pins)
        self._load = load_command(pins.instance)
        self._handover_at = -math.inf  # when to ask for it, or to ask again

    @property
    def cgroup(self) -> Path:
        """The cgroup in the record of the loader, which is written at the end of a load."""
        info = read_info(self._pins)
        if info is None:
            raise HostError(f"a load is in progress or was interrupted; if it was interrupted, run: {self._load}")
        return Path(info.cgroup)

    def bring_up(self) -> None:
        """Check that maps of our layout are pinned, and remember which ones."""
        self._require_maps()
        self._lock.take()
        self._remember_maps()

    def _take_back(self) -> None:
        """Do nothing: the sidecar has not loaded it."""

    def open(self) -> Maps:
        """Open the maps that a writer needs."""
        return Maps(self._pins, handed_over=True)

    def is_lost(self) -> bool:
        """Tell whether the pinned maps are not those that were opened last."""
        self._require_maps()
        reason = self._unattached()
        if self._has_other_maps():
            return True
        if reason:
            raise HostError(reason)
        return False

    def objection(self) -> str | None:
        """Compare with the record of the loader, and test by a connect if this process is in the cgroup."""
        try:
            reason = self._unattached()
            inside = reason is None and cgroups.contains_self(self.cgroup)
        except HostError as error:
            return str(error)
        return selftest.run(self._pins.instance, self.cgroup) if inside else reason

    def overlaps(self) -> Sequence[Overlap]:
        """Return the overlaps that this process can see, and those in the record of the loader."""
        return find_overlaps(self._pins, self.cgroup, self._instance.read_neighbours())

    def follows_outcomes(self) -> bool:
        """Look for the pin of its link, which we are not allowed to open."""
        return self._pins.link(OUTCOMES).exists()

    def follow_outcomes(self) -> None:
        """Do nothing but check: only root can attach it."""
        if not self.follows_outcomes():
            raise HostError(f"{OUTCOMES} is not attached; run: {outcomes_command(self._pins.instance, self.cgroup)}")

    def leave_outcomes(self) -> None:
        """Do nothing: only root can detach it."""

    def is_traced(self) -> bool:
        """Return False: root's trace attaches it by itself."""
        return False

    def settle(self) -> bool:
        """Ask a unit of root's to remove them, and again after a while if they are still there."""
        if not self.other_layouts():
            return True
        now = time.monotonic()
        if now >= self._handover_at:
            self._handover_at = now + _ASK_AGAIN_AFTER
            self._instance.request_handover()
        return False

    async def request_closing(self, members: Collection[bytes], protocols: Collection[Protocol]) -> Destroyed | None:
        """Ask the service of the systemd units."""
        return await closer.ask(self._pins.instance, members, protocols) if closer.SOCKET.exists() else None

    def close_sockets(self, members: Collection[bytes], maps: Maps, protocols: Collection[Protocol]) -> Destroyed:
        """Close those that our own privileges allow."""
        return close_sockets(members, maps.records(), protocols=protocols, pinned=maps.record_iterators())

    def _unattached(self) -> str | None:
        target, attached_to = self.cgroup, self._instance.read_loaded()
        if attached_to is None:
            return f"the last load did not record its cgroup {target}; run: {self._load}"
        now, load = cgroups.identity(target), load_command(self._pins.instance, target)
        if now is None:
            return f"{target} is gone; when it exists again, run: {load}"
        if now != attached_to:
            return f"{target} was recreated without the programs; run: {load}"
        return None

    def _require_maps(self) -> None:
        if self._pins.have_maps():
            return
        if self._pins.are_removed():
            raise RemovedError(f"{self._pins.home} was removed while it was mounted here; restart the sidecar")
        others = ", ".join(path.name for path in self._pins.other_layouts())
        found = f"is loaded with map layout {others} instead of v{LAYOUT}" if others else "is not loaded"
        raise HostError(f"the data plane of instance {self._pins.instance!r} {found}; run: {self._load}")
