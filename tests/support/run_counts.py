"""The number of runs of an instance's programs in the kernel."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clb_discovery.datapath import bpf
from clb_discovery.datapath.pins import PROGRAMS, Pins

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


@contextmanager
def counting_runs() -> Iterator[None]:
    """Let the kernel count while the block runs (as kernel.bpf_stats_enabled, but only while a descriptor is open)."""
    fd = _libbpf.bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(fd)


def run_counts(pins: Pins) -> dict[str, int]:
    """Return the number of runs of each attached program, by name."""
    return {name: _runs(pins.program(name)) for name in PROGRAMS}


def _runs(pin: Path) -> int:
    fd = bpf.open_pin(pin)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return next(int(line.split()[1]) for line in lines if line.startswith("run_cnt:"))
