"""The pinned maps of an instance: read as a whole, written by the steps of a plan."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Final, Self

from clb_discovery.datapath import bpf, handover, links, probe, verdicts
from clb_discovery.datapath.handover import Access
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.records import RecordMaps
from clb_discovery.errors import ClbError, HostError
from clb_discovery.files import SHORT
from clb_discovery.hints import load_command, unload_command
from clb_discovery.layout import elements, structs
from clb_discovery.layout.chains import read_chains
from clb_discovery.layout.elements import Info, Label, Server, Steering
from clb_discovery.layout.health import Words
from clb_discovery.layout.installed import DECODED, Installed, decode
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Protocol
from clb_discovery.publication.steps import Delete, GracePeriod, Step, Store, Write

_READS: Final = 3
"""Another process may reuse elements while they are read; a reading that shows this is repeated."""
_NO_ROOM: Final = frozenset({errno.E2BIG, errno.ENOSPC, errno.ENOMEM})


class FullError(ClbError):
    """The kernel has no room or no memory for one element; the elements before it are written."""

    def __init__(self, map_: Map, key: bytes, reason: str) -> None:
        """Name the element, the cause and the fix."""
        super().__init__(f"{reason}; the last published pools stay in effect")
        self.map = map_
        self.key = key
        self.reason = reason


class Maps:
    """Open maps of one instance. There is one writer at a time: see `writer_lock.WriterLock`."""

    def __init__(self, pins: Pins, *, handed_over: bool = False) -> None:
        """Open the pinned maps.

        :param handed_over: open only the maps that `handover.share` gives to a writer.
        :raises HostError: if they do not exist, or we are not allowed to open them.
        """
        probe.raise_memlock_limit()
        self._pins = pins
        self._access = handover.WRITER if handed_over else handover.EVERYTHING
        self._grace_period: bpf.GracePeriod | None = None
        self._settled = True  # whether a grace period has passed since the last step
        self._fds = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the maps; they stay pinned."""
        _close(self._fds)
        self._fds = {}
        if self._grace_period:
            self._grace_period.close()
            self._grace_period = None

    def reopen(self) -> None:
        """Open the maps that are pinned now; a load may have replaced them.

        :raises HostError: as the constructor; the previous maps stay open then.
        """
        fds, self._fds = self._fds, self._opened()
        _close(fds)

    def read(self) -> Installed:
        """Read and decode the installed state.

        :raises OSError: if the kernel refuses to read, or to wait for programs after our last steps: elements without
            references are free for the next plan.
        """
        if not self._settled:
            self.carry_out(GracePeriod())
        rows = bpf.map_entries(self._fds[Map.ROWS])
        for _ in range(_READS):
            installed = decode({map_: self._items(map_) for map_ in DECODED}, self._values, rows)
            if not installed.broken and all(one.pool is not None for one in installed.virtual.values()):
                break
        return installed

    def servers(self, installed: Installed) -> dict[bytes, Server]:
        """Return the counters and the health of each packed member.

        :param installed: the content of the maps, which assigns members to indexes.
        """
        members = {index: member for one in installed.virtual.values() for member, index in one.servers.items()}
        raw = islice(self._items(Map.SERVERS), max(members, default=-1) + 1)
        decoded = ((elements.unpack_index(key), value) for key, value in raw)
        return {members[index]: elements.unpack_server(value) for index, value in decoded if index in members}

    def words(self, installed: Installed) -> Words:
        """Return what the sidecar has said of the servers until now; as `servers`."""
        size = structs.STEERING.size
        raw = self._values(Map.STEERING, 0, installed.top)
        raw = raw[: -(-len(raw.rstrip(b"\0")) // size) * size]
        servers = (one for published in installed.virtual.values() for one in published.servers.items())
        found = ((member, raw[index * size : (index + 1) * size]) for member, index in servers if raw)
        said = {member: elements.unpack_steering(data) for member, data in found if any(data)}
        return Words(said, time.monotonic_ns())

    def raw_servers(self, count: int) -> bytes:
        """Return the elements of the first indexes of `clb_servers`, not decoded: this takes one call."""
        return self._values(Map.SERVERS, 0, count)

    def raw_server(self, index: int) -> bytes:
        """Return one element of `clb_servers`, not decoded."""
        return self._values(Map.SERVERS, index, 1)

    def raw_steering(self, count: int) -> bytes:
        """Return the elements of the first indexes of `clb_steering`, not decoded: this takes one call."""
        return self._values(Map.STEERING, 0, count)

    def steering(self, index: int) -> Steering:
        """Return what the sidecar says of the server with this index."""
        return elements.unpack_steering(self._values(Map.STEERING, index, 1))

    def steer(self, said: Mapping[int, Steering]) -> None:
        """Write what the sidecar has found out about real servers, by their indexes."""
        verdicts.store(self._fds[Map.STEERING], said)

    def records_lost(self) -> int:
        """Return how often there was no memory for the record of a socket."""
        counts = self._fds.get(Map.COUNTS)
        data = bpf.lookup(counts, elements.pack_index(structs.COUNT_RECORDS_LOST), 8) if counts is not None else None
        return int.from_bytes(data or b"", sys.byteorder)

    def published(self, members: Collection[bytes]) -> set[bytes]:
        """Return the packed members that are in a pool now. This keeps nothing else in memory."""
        asked = frozenset(members)
        # Links are read first, as in `decode`: what they lead to stays for a grace period.
        reached = read_chains(self._values).virtual.values()
        keys = {element.generation: element.vip for _, element in reached}
        in_array = sorted(
            (element.row, elements.rows(element.servers)) for _, element in reached if element.row != structs.OVERFLOWS
        )
        found: set[bytes] = set()

        def look(row: bytes) -> None:
            vip = keys.get(elements.generation_of(row))
            if vip is not None:
                found.update(slot.member for slot in elements.unpack_row(vip, row) if slot.member in asked)

        for first, count in in_array:
            data = self._values(Map.ROWS, first, min(count, structs.MAX_ROWS))
            for at in range(0, len(data), structs.ROW.size):
                look(data[at : at + structs.ROW.size])
        for _, row in self._items(Map.OVERFLOW):
            look(row)
        return found

    def records(self) -> RecordMaps:
        """Return the descriptors of the maps with records of sockets; the caller must not close them."""
        return RecordMaps(self._fds[Map.OWNERS], self._fds[Map.PLACES], self._fds[Map.SOCKETS])

    def record_iterators(self) -> Mapping[Protocol, Path]:
        """Return the pinned iterators over records in socket storage, by protocol; only existing ones."""
        pins = {protocol: self._pins.records(protocol) for protocol in Protocol}
        return {protocol: pin for protocol, pin in pins.items() if pin.exists()}

    def events(self) -> int:
        """Return the descriptor of the ring buffer; the caller must not close it."""
        return self._fds[Map.EVENTS]

    def listen_until(self, moment: int) -> None:
        """Let programs report connects until this moment in nanoseconds of CLOCK_MONOTONIC; 0 stops reports."""
        self._listen_until(structs.LISTENS_EVENTS, moment)

    def changes(self) -> int:
        """Return the descriptor of the ring buffer of servers that go or come; the caller must not close it."""
        return self._fds[Map.CHANGES]

    def hear_changes_until(self, moment: int) -> None:
        """Let programs report servers that go or come, and suspect them, until this moment; as `listen_until`."""
        self._listen_until(structs.LISTENS_CHANGES, moment)

    def _listen_until(self, ring: int, moment: int) -> None:
        bpf.update(self._fds[Map.LISTENER], elements.pack_index(ring), struct.pack("=Q", moment))

    def label(self, vip: bytes) -> Label | None:
        """Return the names of a virtual server.

        :param vip: packed.
        """
        data = bpf.lookup(self._fds[Map.LABELS], vip, structs.LABEL.size)
        return elements.unpack_label(data) if data else None

    def is_heard(self) -> bool:
        """Tell whether a listener is registered; it may have died without unregistering."""
        return bpf.lookup(self._fds[Map.LISTENER], elements.pack_index(structs.LISTENS_EVENTS), 8) != bytes(8)

    def info(self) -> Info | None:
        """Return the record of the loader, or None if a load was interrupted before it was written."""
        return _info(self._fds[Map.INFO])

    def write_info(self, info: Info) -> None:
        """Write the record of the loader."""
        bpf.update(self._fds[Map.INFO], elements.FIRST, elements.pack_info(info))

    def apply(self, steps: Iterable[Step]) -> None:
        """Carry out the steps of a plan in their order.

        :raises FullError: if there is no room or no memory for an element.
        :raises ClbError: if the kernel refuses a step. The published pools stay valid; `read` returns the new state.
        """
        for step in steps:
            try:
                self.carry_out(step)
            except OSError as error:
                if isinstance(step, Write) and error.errno in _NO_ROOM:
                    key, _ = step.items[getattr(error, "done", 0)]
                    raise FullError(step.map, key, _lack(step.map, error)) from error
                raise ClbError(
                    f"the kernel rejects a {_named(step)}: {error.strerror}; the last published pools stay in effect"
                ) from error

    def carry_out(self, step: Step) -> None:
        """Carry out one step.

        :raises OSError: if the kernel refuses it.
        """
        self._settled = False
        match step:
            case Write(map_, items):
                bpf.update_all(self._fds[map_], items)
            case Store(changed):
                links.store(self._fds, changed)
            case Delete(map_, keys):
                try:
                    bpf.delete_all(self._fds[map_], keys)
                except FileNotFoundError:  # another program has deleted elements before
                    for key in keys:
                        with contextlib.suppress(FileNotFoundError):
                            bpf.delete_all(self._fds[map_], [key])
            case _:
                if self._grace_period is None:
                    self._grace_period = handover.grace_period(self._pins)
                self._grace_period.wait()
                self._settled = True

    def _opened(self) -> dict[Map, int]:
        pins = self._pins
        with contextlib.ExitStack() as stack:
            fds = {}
            for map_, access in self._access.items():
                try:
                    fds[map_] = bpf.open_pin(pins.map(map_), read_only=access is Access.READ)
                    stack.callback(os.close, fds[map_])
                    sizes = bpf.map_sizes(fds[map_])
                except OSError as error:
                    if map_ in structs.ADDED and isinstance(error, FileNotFoundError):
                        continue
                    raise _cannot_open(pins, error) from error
                if sizes != structs.SIZES[map_]:
                    fix = unload_command(pins.instance)
                    raise HostError(f"{pins.map(map_)} is not a map of this version; run: {fix}")
            stack.pop_all()
            return fds

    def _items(self, map_: Map) -> Iterable[tuple[bytes, bytes]]:
        return bpf.items(self._fds[map_], *structs.SIZES[map_])

    def _values(self, map_: Map, first: int, count: int) -> bytes:
        size = structs.SIZES[map_][1]
        if map_ is Map.CHAINS:
            return links.read_heads(self._fds[map_])[first * size : (first + count) * size]
        return bpf.values(self._fds[map_], first, count, size)


def read_info(pins: Pins) -> Info | None:
    """Return the result of `Maps.info` for the maps that are pinned now, without opening the others.

    :raises HostError: as `Maps`.
    """
    try:
        fd = bpf.open_pin(pins.map(Map.INFO), read_only=True)
    except OSError as error:
        raise _cannot_open(pins, error) from error
    try:
        return _info(fd)
    finally:
        os.close(fd)


def _info(fd: int) -> Info | None:
    data = bpf.lookup(fd, elements.FIRST, structs.INFO.size)
    info = elements.unpack_info(data) if data else None
    return info if info and info.layout else None


def _cannot_open(pins: Pins, error: OSError) -> HostError:
    load = load_command(pins.instance)
    if isinstance(error, FileNotFoundError):
        return HostError(f"the data plane of instance {pins.instance!r} is not loaded; run: {load}")
    if isinstance(error, PermissionError):
        return HostError(
            f"not allowed to open BPF maps; run as root, or in the group of: {load} --group GROUP; "
            "Linux before 5.19 also requires CAP_BPF"
        )
    if error.errno in SHORT:
        return HostError(f"cannot open the maps in {pins.directory}: {error.strerror}")
    unload = unload_command(pins.instance)
    return HostError(f"cannot open the maps in {pins.directory}: {error.strerror}; run: {unload}")


def _named(step: Step) -> str:
    match step:
        case Write(map_) | Delete(map_):
            return f"{type(step).__name__.lower()} in {map_}"
        case Store():
            return "store of a link"
        case _:
            return "RCU wait"


def _lack(map_: Map, error: OSError) -> str:
    if error.errno == errno.ENOMEM:
        return f"the kernel has no memory for an element of {map_}; free some, or raise the limit of the memory cgroup"
    return f"{map_} is full; use fewer VIPs or real servers, or a second --instance for some services"


def _close(fds: Mapping[Map, int]) -> None:
    for fd in fds.values():
        os.close(fd)
