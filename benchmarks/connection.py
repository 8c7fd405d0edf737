"""The cost of a whole connection with its close, and how much of it is in our programs: `make bench`.

A client in C connects to itself, and closes by RST or by FIN (`connects.c`). The server's end is in another cgroup, so
no program of ours runs for it, as on another host. Clients with our programs, and without any, take turns in another
order in each round. The result is the median over all rounds of the difference to direct within a round, with
quartiles. The kernel's own counts have the time inside of our programs, less that of empty programs. All else is the
kernel's work for our hooks. Run as root.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import results
from benchmarks.client import CLOSES, RST, SOURCE, Client, Times, client
from benchmarks.planes import AGAIN, DIRECT, STATES, plane, serve_itself
from benchmarks.process import compiled
from benchmarks.programs import ON_THE_WAY, Runs, counted, empty_programs, programs_of
from benchmarks.ways import REAL
from clb_discovery.demo.private_network import enter_private_network
from tests.support.cgroups import made_cgroup

CONNECTS: Final = 30
ROUNDS: Final = 200
COUNTED_ROUNDS: Final = 20
EMPTY: Final = "empty programs"


class Case(NamedTuple):
    """A client, where it connects to, and the programs on its way."""

    client: Client
    address: str
    programs: Mapping[str, int]

    def connect(self, close: str) -> Times:
        """Make one batch of connections."""
        return self.client.connect(self.address, CONNECTS, close)

    def runs(self, close: str) -> dict[str, Runs]:
        """Return the runs of programs for a connection of one batch."""
        return counted(self.programs, lambda times: self.client.connect(self.address, times, close), CONNECTS)


def difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of the differences within rounds."""
    differences = [one - other for one, other in zip(values, others, strict=True)]
    low, median, high = statistics.quantiles(differences, n=4) if len(differences) > 1 else differences * 3
    return low, median, high


def inside(ours: Mapping[str, Runs], empty: Mapping[str, Runs]) -> float:
    """Return the nanoseconds in our programs for a connection, less those that empty programs take for as many runs."""
    return sum(
        runs.nanoseconds - runs.number * empty[name].nanoseconds / empty[name].number for name, runs in ours.items()
    )


def summary(
    measured: Mapping[str, Mapping[str, Sequence[Times]]], counts: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the results by case.

    :param measured: for each case and close the times of all rounds.
    :param counts: for each case of ours and close the nanoseconds in our programs.
    """
    found: dict[str, dict[str, float]] = {}
    for name, by_close in measured.items():
        fields = found.setdefault(name, {})
        pairs = list(zip(by_close[RST], measured[DIRECT][RST], strict=True))
        _, more, _ = difference([one.connect for one, _ in pairs], [other.connect for _, other in pairs])
        fields |= {
            "connect_us": round(statistics.median(one.connect for one, _ in pairs) / 1000, 2),
            "connect_more_ns": round(more),
        }
        for close, times in by_close.items():
            whole = [one.whole for one in times]
            low, more, high = difference(whole, [other.whole for other in measured[DIRECT][close]])
            fields |= {
                f"{close}_us": round(statistics.median(whole) / 1000, 2),
                f"{close}_more_ns": round(more),
                f"{close}_low_ns": round(low),
                f"{close}_high_ns": round(high),
            }
            if name in counts:
                own = counts[name][close]
                fields |= {f"{close}_inside_ns": round(own), f"{close}_outside_ns": round(more - own)}
    return found


def cases(stack: ExitStack, folder: Path) -> dict[str, Case]:
    """Set up all cases, each with a port of its own."""
    program = compiled(SOURCE, folder)
    bare, other = (stack.enter_context(made_cgroup()) for _ in range(2))
    empty = stack.enter_context(empty_programs(other, *ON_THE_WAY))

    def listening() -> socket.socket:
        return stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=4096))

    found = {
        name: Case(stack.enter_context(client(program, listening(), cgroup)), REAL[0], programs)
        for name, cgroup, programs in ((DIRECT, bare, {}), (AGAIN, bare, {}), (EMPTY, other, empty))
    }
    for state in STATES:
        listener = listening()
        own = stack.enter_context(plane(state, listener.getsockname()[1], folder))
        connecting = stack.enter_context(client(program, listener, own.cgroup))
        programs = stack.enter_context(programs_of(own.pins))
        found |= {row: Case(connecting, address, programs) for row, address in state.rows}
    return found


def time_all(found: Mapping[str, Case], rounds: int) -> dict[str, dict[str, list[Times]]]:
    """Return the times of all cases and closes, interleaved."""
    times: dict[str, dict[str, list[Times]]] = {name: {close: [] for close in CLOSES} for name in found}
    order = [(name, close) for name in found for close in CLOSES]
    for turn in range(rounds + 5):
        random.shuffle(order)
        for name, close in order:
            one = found[name].connect(close)
            if turn >= 5:  # the first ones fill caches and branch predictors
                times[name][close].append(one)
    return times


def count_all(found: Mapping[str, Case]) -> dict[str, dict[str, float]]:
    """Return the nanoseconds in our programs for a connection, by case and close: medians of rounds."""
    ours = [name for state in STATES for name, _ in state.rows]
    rounds: dict[str, dict[str, list[float]]] = {name: {close: [] for close in CLOSES} for name in ours}
    for _ in range(COUNTED_ROUNDS):
        for close in CLOSES:
            empty = found[EMPTY].runs(close)
            for name in ours:
                rounds[name][close].append(inside(found[name].runs(close), empty))
    return {
        name: {close: statistics.median(values) for close, values in by_close.items()}
        for name, by_close in rounds.items()
    }


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(prog="connection", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    enter_private_network()
    serve_itself()
    with ExitStack() as stack:
        ready = cases(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        found = summary(time_all(ready, options.rounds), count_all(ready))
    print(*results.table(found), sep="\n")
    if options.save:
        results.save("connection", found)


if __name__ == "__main__":
    main()
