"""What the kernel counts of BPF programs, and empty programs to compare ours with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.datapath import bpf, probe
from clb_discovery.datapath.pins import PROGRAMS, Pins
from tests.support.run_counts import counting_runs

ON_THE_WAY: Final = ("clb_connect4", "clb_sock_ops", "clb_sock_release")
"""The programs that run for a TCP connection over IPv4, from connect to close."""


class Runs(NamedTuple):
    """Runs of a program while the kernel counts them."""

    number: float
    nanoseconds: float
    """Time in the program, with the reading of the clock."""

    def since(self, before: Runs, connections: int) -> Runs:
        """Return the runs for one of so many connections."""
        return Runs((self.number - before.number) / connections, (self.nanoseconds - before.nanoseconds) / connections)


def runs(programs: Mapping[str, int]) -> dict[str, Runs]:
    """Return the runs of programs so far.

    :param programs: their descriptors by their names.
    """
    return {name: _runs(fd) for name, fd in programs.items()}


def _runs(fd: int) -> Runs:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return Runs(int(fields["run_cnt"]), int(fields["run_time_ns"]))


@contextmanager
def empty_programs(cgroup: Path, *names: str) -> Iterator[dict[str, int]]:
    """Attach an empty program to the hook of each of these programs of ours; yield their descriptors."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    programs = {name: bpf.load_program(probe.ALLOW, PROGRAMS[name]) for name in names}
    links = [bpf.link_create(program, directory, PROGRAMS[name]) for name, program in programs.items()]
    try:
        yield programs
    finally:
        for fd in (*links, *programs.values(), directory):
            os.close(fd)


@contextmanager
def programs_of(pins: Pins) -> Iterator[dict[str, int]]:
    """Open the programs of an instance that run for a TCP connection, as far as it has them."""
    opened = {name: bpf.open_pin(pins.program(name)) for name in ON_THE_WAY if pins.program(name).exists()}
    try:
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def counted(programs: Mapping[str, int], connect: Callable[[int], object], connections: int) -> dict[str, Runs]:
    """Return the runs of programs for one connection, counted while so many are made."""
    with counting_runs():
        before = runs(programs)
        connect(connections)
        after = runs(programs)
    return {name: after[name].since(before[name], connections) for name in programs}
