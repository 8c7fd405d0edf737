"""Loaded data planes for one test after the other, each as if it had just been loaded.

The kernel verifies the programs for half a second at each load, so a test that is not about loading takes a data plane
of an earlier test. Its maps are emptied, its pins have their first owners and modes, and new links attach the programs
to the cgroup of the test.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final
from unittest.mock import patch
from uuid import uuid4

import pytest

from clb_discovery.datapath import bpf
from clb_discovery.datapath.instance import RUN
from clb_discovery.datapath.loading import libbpf, loader
from clb_discovery.datapath.loading.libbpf import Variant
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import BPFFS, OUTCOMES, PROGRAMS, Pins, detach
from clb_discovery.datapath.ring import Ring
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model import own_servers
from clb_discovery.publication.plan import plan
from tests.support.loading import loader_of_tests

_HASHES: Final = frozenset({Map.OVERFLOW, Map.LABELS})
_RINGS: Final = {Map.EVENTS: structs.EVENTS_BYTES, Map.CHANGES: structs.CHANGES_BYTES}
_STAY: Final = frozenset({Map.INFO, Map.HOME, Map.DICE, Map.PLACES, Map.SOCKETS, Map.PEERS})
"""Maps that stay: what `load` has written, random numbers, places, which mean nothing without an owner, and what ends
with each socket."""
_PUT_AWAY: Final = BPFFS / "clb-test-spares"
_BLOCK: Final = 2048


class Spares:
    """The data planes of one process that no test uses at present."""

    def __init__(self) -> None:
        self._free: dict[Variant | None, list[_Spare]] = defaultdict(list)

    @contextmanager
    def taken(self, cgroup: Path, variant: Variant | None = None, *, outcomes: bool = False) -> Iterator[str]:
        """Attach a data plane without virtual servers to a cgroup while the block runs; yield its instance.

        The block may do anything to it.

        :param variant: the object that is loaded; None for what `load` takes.
        :param outcomes: attach the program that learns outcomes, too, as `load` does, and `run` does not.
        """
        free = self._free[variant]
        spare = free.pop() if free else _Spare(variant)
        try:
            spare.renew(cgroup, outcomes=outcomes)
            yield spare.pins.instance
        finally:
            spare.put_away()
            free.append(spare)

    def close(self) -> None:
        """Remove all of them."""
        for spare in (spare for free in self._free.values() for spare in free):
            spare.fetch()
            spare.wipe()
        self._free.clear()
        with suppress(OSError):  # there was none, or another process has some
            _PUT_AWAY.rmdir()


class _Spare:
    """One data plane."""

    def __init__(self, variant: Variant | None) -> None:
        self.pins = Pins(f"test-{uuid4().hex[:8]}")
        self._variant = variant
        self._loader = Loader.OBJECT if variant else loader_of_tests()
        self._modes: dict[str, tuple[int, ...]] = {}

    def put_away(self) -> None:
        """Move its pins to where nothing looks for instances."""
        _PUT_AWAY.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # the test has removed it
            self.pins.home.rename(_PUT_AWAY / self.pins.instance)

    def fetch(self) -> None:
        """Move its pins back, if there are any."""
        while (_PUT_AWAY / self.pins.instance).exists():
            self.pins.home.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another instance, the last one, has just removed the parent
                (_PUT_AWAY / self.pins.instance).rename(self.pins.home)

    def renew(self, cgroup: Path, *, outcomes: bool) -> None:
        """Empty and attach it, or load it if it is not there as it was; see `Spares.taken`."""
        self.fetch()
        if self._is_there():
            try:
                self._empty()
                self._attach(cgroup)
            except OSError:  # the test before has frozen a map
                self.wipe()
        if not loader.is_current(self.pins, cgroup, self._loader):
            self.wipe()
        with patch.object(libbpf, "best", return_value=self._variant) if self._variant else nullcontext():
            loader.load(self.pins, cgroup, self._loader, outcomes=outcomes)
        self.pins.create_writer_lock()  # as `load` and `run` do
        self._modes = self._found()

    def wipe(self) -> None:
        """Remove it, with its run-time directory."""
        loader.unload(self.pins)
        shutil.rmtree(RUN / self.pins.instance, ignore_errors=True)

    def _is_there(self) -> bool:
        return bool(self._modes) and self.pins.are_there() and self._found() == self._modes

    def _found(self) -> dict[str, tuple[int, ...]]:
        """Return owner and mode of each pin; a link may be missing."""
        pins = (pin for pin in self.pins.home.rglob("*") if not pin.name.endswith("_link"))
        return {str(pin): (found.st_uid, found.st_gid, found.st_mode) for pin in pins for found in [pin.stat()]}

    def _empty(self) -> None:
        shutil.rmtree(RUN / self.pins.instance, ignore_errors=True)
        for map_ in set(Map) - _STAY:
            fd = bpf.open_pin(self.pins.map(map_))
            try:
                _clear(map_, fd)
            finally:
                os.close(fd)
        with Maps(self.pins) as maps:
            own = own_servers.virtual_servers(self.pins.instance)
            maps.apply(plan(maps.read(), own, complete=True).steps)

    def _attach(self, cgroup: Path) -> None:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name, hook in PROGRAMS.items():
                detach(self.pins.link(name))
                if name != OUTCOMES:
                    program = bpf.open_pin(self.pins.program(name))
                    link = bpf.link_create(program, directory, hook)
                    bpf.pin(link, self.pins.link(name))
                    os.close(link)
                    os.close(program)
        finally:
            os.close(directory)
        with Maps(self.pins) as maps:
            info = maps.info()
            assert info is not None
            maps.write_info(info._replace(cgroup=str(cgroup)))


def _clear(map_: Map, fd: int) -> None:
    key_size, size = structs.SIZES[map_]
    if map_ in _RINGS:
        ring = Ring(fd, _RINGS[map_])
        ring.skip()
        ring.close()
    elif map_ in _HASHES:
        bpf.delete_all(fd, [key for key, _ in bpf.items(fd, key_size, size)])
    else:
        try:
            with mmap.mmap(fd, -(-size // 8) * 8 * bpf.map_entries(fd)) as memory:
                memory[:] = bytes(len(memory))
        except OSError:
            _clear_by_calls(fd, size)


def _clear_by_calls(fd: int, size: int) -> None:
    """Clear an array that cannot be mapped: as far as elements are used, the lowest first."""
    first, zero = 0, bytes(size)
    while (values := bpf.values(fd, first, _BLOCK, size)).strip(b"\0"):
        for index in range(len(values) // size):
            if values[index * size : (index + 1) * size] != zero:
                bpf.update(fd, elements.pack_index(first + index), zero)
        first += _BLOCK


@pytest.fixture
def loaded_instance(spares: Spares, cgroup: Path) -> Iterator[str]:
    """Return an instance that is loaded and attached to `cgroup`, without virtual servers.

    For files that assign it to `instance`: a sidecar then starts as after a restart, and does not load.
    """
    with spares.taken(cgroup) as found:
        yield found
