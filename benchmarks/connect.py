"""The cost of a connect, compared with other ways to balance: `make bench`.

Each case has its own client, a loop in C. It connects to itself through the VIP, so that no other process is woken
while connect(2) is measured; then to a process that listens at ten addresses, and waits for its answer. Cases are
interleaved, in another order in each round. The result is the median over all rounds, with quartiles of the ratio to
direct within a round. Run as root.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import results
from benchmarks.process import SERVER, compiled
from benchmarks.ways import DIRECT, PORT, REAL, Way, prepare

LATENCY: Final = Path(__file__).with_name("latency.c")
INSTANCE: Final = "bench-connect"
CONNECTS: Final = 100
ROUNDS: Final = 200


class Batch(NamedTuple):
    """The client's results for one batch, in nanoseconds."""

    connect: int
    connect_p99: int
    answer: int
    answer_p99: int
    total: int


class Case:
    """One way to connect, and its client."""

    def __init__(self, way: Way, client: subprocess.Popen[str]) -> None:
        self._client = client
        self._line = f"{way.address} {way.own_port} {way.port} {CONNECTS}"
        self.batches: list[Batch] = []

    def measure(self) -> None:
        """Connect for one batch."""
        assert self._client.stdin
        assert self._client.stdout
        print(self._line, file=self._client.stdin, flush=True)
        self.batches.append(Batch._make(map(int, self._client.stdout.readline().split())))

    def median(self, what: str) -> float:
        """Return the median of a field over all batches."""
        return float(statistics.median(getattr(batch, what) for batch in self.batches))


@contextmanager
def client(way: Way, program: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a client of a way."""
    command = way.client(program, str(way.own))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def cases(stack: ExitStack, folder: Path) -> dict[str, Case]:
    """Set up all cases."""
    latency, server = (compiled(source, folder) for source in (LATENCY, SERVER))
    ways = prepare(stack, folder, INSTANCE, [server, "1", str(PORT), *REAL])
    return {name: Case(way, stack.enter_context(client(way, latency))) for name, way in ways.items()}


def summary(measured: dict[str, Case]) -> dict[str, dict[str, float]]:
    """Return the results by case; for a connect that leads to a proxy only the total."""
    direct = measured[DIRECT].batches
    found: dict[str, dict[str, float]] = {}
    for name, case in measured.items():
        pairs = list(zip(case.batches, direct, strict=True))
        answer = results.ratio((one.answer, other.answer) for one, other in pairs)
        found[name] = {
            "answer_p50_us": round(case.median("answer") / 1000, 2),
            "answer_to_direct": answer["to_direct"],
            "answer_low": answer["low"],
            "answer_high": answer["high"],
            "per_second": round(CONNECTS / case.median("total") * 1e9),
        }
        if case.median("connect"):
            found[name] |= {
                "connect_p50_us": round(case.median("connect") / 1000, 2),
                "connect_p99_us": round(case.median("connect_p99") / 1000, 2),
                **results.ratio((one.connect, other.connect) for one, other in pairs),
            }
    return found


def main() -> None:
    """Measure all cases, interleaved."""
    parser = argparse.ArgumentParser(prog="connect", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    with ExitStack() as stack:
        measured = cases(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        order = list(measured.values())
        for turn in range(options.rounds + 5):
            random.shuffle(order)
            for case in order:
                case.measure()
                if turn < 5:  # fills caches and branch predictors
                    case.batches.clear()
    found = summary(measured)
    print(*results.table(found), sep="\n")
    if options.save:
        results.save("connect", found)


if __name__ == "__main__":
    main()
