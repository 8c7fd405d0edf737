"""Resources that have to exist, and must not grow: pins, elements of maps, descriptors, threads, memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.datapath import bpf
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from tests.support.kernel_objects import KernelObject, pinned

SPARE_FDS: Final = 12
"""Number of connections to Consul that may be open at one time and not at another."""
SPARE_KIB: Final = 16 << 10
"""Memory that the second half of a run may use beyond the maximum of the first."""


class Sample(NamedTuple):
    """The resources of a process."""

    time: float
    descriptors: int
    threads: int
    kib: int


def sample(pid: int) -> Sample:
    """Return the resources of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only their number
    return Sample(time.monotonic(), descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]))


def slope(samples: list[Sample]) -> float:
    """Return the growth of memory in the second half, in KiB a minute."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return 0.0
    return statistics.linear_regression([one.time for one in half], [one.kib for one in half]).slope * 60


def grown(samples: list[Sample]) -> Iterator[str]:
    """Yield the resources of which a process has more in the end than in the first half."""
    first, second = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    if len(first) < 3:
        return
    for what, spare in (("descriptors", SPARE_FDS), ("threads", SPARE_FDS), ("kib", SPARE_KIB)):
        before, after = max(getattr(one, what) for one in first), min(getattr(one, what) for one in second[-3:])
        if after > before + spare:
            yield f"{after} {what} in the end, and at most {before} in the first half"


def pins(instance: str) -> Mapping[str, KernelObject]:
    """Return all pins of an instance."""
    return pinned(Pins(instance).home)


def leftovers(instance: str) -> Iterator[str]:
    """Yield the unused elements of the maps, after all clients have ended and nothing changes."""
    with Maps(Pins(instance)) as maps:
        installed = maps.read()
    for map_, keys in installed.orphans.items():
        yield f"{len(keys)} elements of {map_} that belong to nobody"
    for vip, published in installed.virtual.items():
        if len(published.servers) != len(published.pool or ()) + 1:
            yield f"{vip} has {len(published.servers)} servers for {len(published.pool or ())} members"
    fd = bpf.open_pin(Pins(instance).map(Map.OWNERS))
    try:
        buckets = [elements.unpack_bucket(value) for _, value in bpf.items(fd, *structs.SIZES[Map.OWNERS])]
    finally:
        os.close(fd)
    if taken := sum(socket != 0 for bucket in buckets for socket in bucket.sockets):
        yield f"{taken} places of sockets that are closed"
    if crowded := sum(bucket.crowded for bucket in buckets):
        yield f"{crowded} sockets that are closed and count as beside a full bucket"
