"""What a connect takes, beside other ways to balance it: `make bench`.

Each case has a client of its own, a loop in C that connects, asks, is answered and resets; the real servers are one
process that listens at ten addresses. Everything is on the loopback of network namespaces: conntrack slows whatever
shares one with it, so iptables, nftables and HAProxy have theirs. Cases are interleaved, in another order in each
round. What is told is the median over all rounds, with quartiles of the ratio to direct within a round. Run as root.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import results
from benchmarks.hooks import LEAN
from clb_discovery.core import selftest
from clb_discovery.core.address import parse_address
from clb_discovery.core.model import Algorithm, Protocol, RealServer, Tracking, Vip, VirtualServer
from clb_discovery.core.plan import plan
from clb_discovery.datapath import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.runtime import Instance
from tests.support import namespaces
from tests.support.cgroups import inside, made_cgroup
from tests.support.dataplane import wipe
from tests.support.process import wait_until

HERE: Final = Path(__file__).parent
INSTANCE: Final = "bench-connect"
CONNECTS: Final = 100
ROUNDS: Final = 200
REAL: Final = [f"10.1.0.{number}" for number in range(1, 11)]
PORT: Final = 7000
VIP: Final = "10.64.0.1"
VIP_PORT: Final = 80
OURS: Final[dict[str, tuple[str, Algorithm, Tracking]]] = {
    "clb-discovery, random": ("10.64.0.1", Algorithm.RANDOM, Tracking()),
    "clb-discovery, round-robin": ("10.64.0.2", Algorithm.ROUND_ROBIN, Tracking()),
    "clb-discovery, least-conn": ("10.64.0.3", Algorithm.LEAST_CONN, Tracking()),
    "clb-discovery, lean": ("10.64.0.4", Algorithm.RANDOM, LEAN),
}


class Batch(NamedTuple):
    """What the client says of one batch, in nanoseconds."""

    connect: int
    connect_p99: int
    answer: int
    answer_p99: int
    total: int


class Case:
    """One way to connect, and its client."""

    def __init__(self, client: subprocess.Popen[str], address: str, port: int) -> None:
        self._client = client
        self._line = f"{address} {port} {CONNECTS}"
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


def in_namespace(namespace: Path, command: Sequence[str | Path]) -> list[str]:
    """Return the command that runs another in a network namespace."""
    return ["nsenter", f"--net={namespace}", *map(str, command)]


@contextmanager
def place(server: Path) -> Iterator[Path]:
    """Make a network namespace in which the real servers are; yield its file."""
    with namespaces.by_mount() as namespace:
        for network in ("10.1.0.0/24", "10.64.0.0/24"):
            route = ["ip", "route", "add", "local", network, "dev", "lo"]
            subprocess.run(in_namespace(namespace, route), check=True)
        command = in_namespace(namespace, [server, "1", str(PORT), *REAL])
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            try:
                yield namespace
            finally:
                process.kill()


@contextmanager
def client(program: Path, namespace: Path, cgroup: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a client, in the cgroup if there is one."""
    command = in_namespace(namespace, [program])
    if cgroup:
        command = inside(cgroup, command)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def publish(pins: Pins) -> None:
    """Publish a virtual server for each of our cases."""
    pool = tuple(RealServer(0, parse_address(address), PORT, 1) for address in REAL)
    wanted = selftest.virtual_servers(pins.instance)
    for address, algorithm, tracking in OURS.values():
        vip = Vip(parse_address(address), VIP_PORT, Protocol.TCP)
        wanted[vip] = VirtualServer(vip, "bench", "bench", algorithm, pool, tracking)
    with Maps(pins) as maps:
        maps.apply(plan(maps.read(), wanted, complete=True).steps)


def add_iptables(namespace: Path) -> None:
    """Let iptables choose a real server at random."""
    for left, address in zip(range(len(REAL), 0, -1), REAL, strict=True):
        chance = ["-m", "statistic", "--mode", "random", "--probability", f"{1 / left:.6f}"] if left > 1 else []
        rule = ["iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", VIP, "--dport", str(VIP_PORT), *chance]
        rule += ["-j", "DNAT", "--to-destination", f"{address}:{PORT}"]
        subprocess.run(in_namespace(namespace, rule), check=True)


def add_nftables(namespace: Path) -> None:
    """Let nftables choose a real server at random."""
    servers = ", ".join(f"{number} : {address}" for number, address in enumerate(REAL))
    choice = f"dnat to numgen random mod {len(REAL)} map {{ {servers} }}:{PORT}"
    rules = f"""table ip bench {{
        chain output {{
            type nat hook output priority -100
            ip daddr {VIP} tcp dport {VIP_PORT} {choice}
        }}
    }}"""
    subprocess.run(in_namespace(namespace, ["nft", "-f", "-"]), input=rules, text=True, check=True)


@contextmanager
def haproxy(namespace: Path, folder: Path) -> Iterator[None]:
    """Run HAProxy, one thread of it, in the place of the VIP."""
    servers = "\n".join(f"    server s{number} {address}:{PORT}" for number, address in enumerate(REAL))
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n    nbthread 1\n    maxconn 1000\n"
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n"
        f"listen bench\n    bind {VIP}:{VIP_PORT}\n    balance random\n{servers}\n"
    )
    command = in_namespace(namespace, ["haproxy", "-f", config])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            listening = in_namespace(namespace, ["ss", "-Hltn", "src", f"{VIP}:{VIP_PORT}"])

            def is_up() -> bool:
                assert process.poll() is None, f"HAProxy does not run with {config.read_text()}"
                return bool(subprocess.run(listening, check=True, capture_output=True).stdout)

            wait_until(is_up, "HAProxy listens")
            yield
        finally:
            process.kill()


def prepare(stack: ExitStack, folder: Path) -> dict[str, Case]:
    """Set up all cases."""
    programs = {}
    for name, source in (("latency", HERE / "latency.c"), ("server", HERE.parent / "soak/server.c")):
        programs[name] = folder / name
        subprocess.run(["clang", "-O2", "-o", str(programs[name]), str(source)], check=True)
    latency, pins = programs["latency"], Pins(INSTANCE)
    cgroup = stack.enter_context(made_cgroup())
    stack.enter_context(Instance(INSTANCE).held())
    stack.callback(wipe, INSTANCE)
    loader.load(pins, cgroup)
    publish(pins)

    bare = stack.enter_context(place(programs["server"]))

    def case(namespace: Path, address: str, port: int, within: Path | None = None) -> Case:
        return Case(stack.enter_context(client(latency, namespace, within)), address, port)

    cases = {
        "direct": case(bare, REAL[0], PORT),
        "direct again": case(bare, REAL[0], PORT),
        "clb-discovery, elsewhere": case(bare, REAL[0], PORT, cgroup),
    }
    cases |= {name: case(bare, address, VIP_PORT, cgroup) for name, (address, _, _) in OURS.items()}
    for name, add in (("iptables DNAT", add_iptables), ("nftables DNAT", add_nftables)):
        namespace = stack.enter_context(place(programs["server"]))
        add(namespace)
        cases[name] = case(namespace, VIP, VIP_PORT)
    namespace = stack.enter_context(place(programs["server"]))
    stack.enter_context(haproxy(namespace, folder))
    cases["HAProxy, TCP"] = case(namespace, VIP, VIP_PORT)
    return cases


def summary(cases: dict[str, Case]) -> dict[str, dict[str, float]]:
    """Return what has come of it, by case."""
    direct = cases["direct"].batches
    found = {}
    for name, case in cases.items():
        ratios = [one.connect / other.connect for one, other in zip(case.batches, direct, strict=True)]
        answers = [one.answer / other.answer for one, other in zip(case.batches, direct, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        found[name] = {
            "connect_p50_us": round(case.median("connect") / 1000, 2),
            "connect_p99_us": round(case.median("connect_p99") / 1000, 2),
            "to_direct": round(median, 3),
            "to_direct_low": round(low, 3),
            "to_direct_high": round(high, 3),
            "first_byte_p50_us": round(case.median("answer") / 1000, 2),
            "first_byte_to_direct": round(statistics.median(answers), 3),
            "per_second": round(CONNECTS / case.median("total") * 1e9),
        }
    return found


def main() -> None:
    """Measure all cases, interleaved."""
    parser = argparse.ArgumentParser(prog="connect", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    with ExitStack() as stack:
        cases = prepare(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        order = list(cases.values())
        for turn in range(options.rounds + 5):
            random.shuffle(order)
            for case in order:
                case.measure()
                if turn < 5:  # caches and branches
                    case.batches.clear()
    found = summary(cases)
    columns = list(next(iter(found.values())))
    print(f"{'':<28}" + "".join(f"{column.replace('_', ' '):>22}" for column in columns))
    for name, fields in found.items():
        print(f"{name:<28}" + "".join(f"{fields[column]:>22}" for column in columns))
    if options.save:
        results.save("connect", found)


if __name__ == "__main__":
    main()
