"""What the sidecar says of real servers: stored in `clb_steering` while programs read it."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Mapping
from typing import Final

from clb_discovery.layout import structs
from clb_discovery.layout.elements import Steering

_DECIDED, _OUT = (structs.STEERING.offsets()[name][0] for name in ("decided_at", "out_until"))
_SIZE: Final = structs.STEERING.size


def store(fd: int, verdicts: Mapping[int, Steering]) -> None:
    """Store verdicts by the indexes of their servers.

    The time of the decision is stored last, and programs read it first: so they never take a new decision with an old
    end. An update by bpf(2) copies both in no order. For how numbers are stored see `links.store`.

    :param fd: a descriptor of the map.
    :raises OSError: if it cannot be written, or if memory is lacking. Then nothing is stored.
    """
    if not verdicts:
        return
    barrier = threading.Lock()
    barrier.acquire()
    with mmap.mmap(fd, (max(verdicts) + 1) * _SIZE) as memory:
        for index, verdict in verdicts.items():
            start = index * _SIZE
            ctypes.c_void_p.from_buffer(memory, start + _OUT).value = verdict.out_until
            barrier.release()
            barrier.acquire()
            ctypes.c_void_p.from_buffer(memory, start + _DECIDED).value = verdict.decided_at
