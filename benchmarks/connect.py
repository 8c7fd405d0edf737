"""What a connect takes, beside other ways to balance it: `make bench`.

Each case has a client of its own, a loop in C. It connects to itself by way of the VIP, so that nobody else is woken
while connect(2) is measured; then to a process that listens at ten addresses, and waits for its answer. All is on the
loopback of network namespaces: conntrack slows whatever shares one with it, so iptables, nftables and HAProxy have
theirs. Cases are interleaved, in another order in each round. What is told is the median over all rounds, with
quartiles of the ratio to direct within a round. Run as root.
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
OWN_PORT: Final = 81
"""Of the VIP: leads to the client itself."""
FIRST_OWN: Final = 7001
"""The ports on which clients listen, from this one on."""
PORTS: Final = ((VIP_PORT, PORT), (OWN_PORT, FIRST_OWN))
"""Of the VIP, and where they lead where there is only one client."""
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

    def __init__(self, client: subprocess.Popen[str], address: str, own: int, port: int) -> None:
        """Take a client.

        :param own: the port that leads to the client itself; 0 where there is none.
        :param port: that which leads to the real servers.
        """
        self._client = client
        self._line = f"{address} {own} {port} {CONNECTS}"
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
def client(program: Path, port: int, namespace: Path, cgroup: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a client that listens on a port, in the cgroup if there is one."""
    command = in_namespace(namespace, [program, str(port)])
    if cgroup:
        command = inside(cgroup, command)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def publish(pins: Pins) -> None:
    """Publish a virtual server for each of our cases."""
    wanted = selftest.virtual_servers(pins.instance)
    for own, (address, algorithm, tracking) in enumerate(OURS.values(), FIRST_OWN):
        for port, real_port in ((VIP_PORT, PORT), (OWN_PORT, own)):
            pool = tuple(RealServer(0, parse_address(server), real_port, 1) for server in REAL)
            vip = Vip(parse_address(address), port, Protocol.TCP)
            wanted[vip] = VirtualServer(vip, "bench", "bench", algorithm, pool, tracking)
    with Maps(pins) as maps:
        maps.apply(plan(maps.read(), wanted, complete=True).steps)


def add_iptables(namespace: Path) -> None:
    """Let iptables choose a real server at random."""
    for port, real_port in PORTS:
        for left, address in zip(range(len(REAL), 0, -1), REAL, strict=True):
            chance = ["-m", "statistic", "--mode", "random", "--probability", f"{1 / left:.6f}"] if left > 1 else []
            rule = ["iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", VIP, "--dport", str(port), *chance]
            rule += ["-j", "DNAT", "--to-destination", f"{address}:{real_port}"]
            subprocess.run(in_namespace(namespace, rule), check=True)


def add_nftables(namespace: Path) -> None:
    """Let nftables choose a real server at random."""
    servers = ", ".join(f"{number} : {address}" for number, address in enumerate(REAL))
    choice = f"dnat to numgen random mod {len(REAL)} map {{ {servers} }}"
    lines = "\n".join(f"ip daddr {VIP} tcp dport {port} {choice}:{real_port}" for port, real_port in PORTS)
    rules = f"table ip bench {{\nchain output {{\ntype nat hook output priority -100\n{lines}\n}}\n}}\n"
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

    def case(namespace: Path, address: str, own: int, within: Path | None = None) -> Case:
        direct = address in REAL
        running = stack.enter_context(client(latency, own, namespace, within))
        return Case(running, address, own if direct else OWN_PORT, PORT if direct else VIP_PORT)

    own = FIRST_OWN + len(OURS)
    cases = {
        "direct": case(bare, REAL[0], own),
        "direct again": case(bare, REAL[0], own + 1),
        "clb-discovery, elsewhere": case(bare, REAL[0], own + 2, cgroup),
    }
    for number, (name, (address, _, _)) in enumerate(OURS.items(), FIRST_OWN):
        cases[name] = case(bare, address, number, cgroup)
    for name, add in (("iptables DNAT", add_iptables), ("nftables DNAT", add_nftables)):
        namespace = stack.enter_context(place(programs["server"]))
        add(namespace)
        cases[name] = case(namespace, VIP, FIRST_OWN)
    namespace = stack.enter_context(place(programs["server"]))
    stack.enter_context(haproxy(namespace, folder))
    cases["HAProxy, TCP"] = Case(stack.enter_context(client(latency, FIRST_OWN, namespace)), VIP, 0, VIP_PORT)
    return cases


def summary(cases: dict[str, Case]) -> dict[str, dict[str, float]]:
    """Return what has come of it, by case; of a connect that leads to a proxy nothing but all of it."""
    direct = cases["direct"].batches
    found: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        pairs = list(zip(case.batches, direct, strict=True))
        found[name] = {
            "answer_p50_us": round(case.median("answer") / 1000, 2),
            "answer_to_direct": round(statistics.median(one.answer / other.answer for one, other in pairs), 3),
            "per_second": round(CONNECTS / case.median("total") * 1e9),
        }
        if case.median("connect"):
            low, median, high = statistics.quantiles((one.connect / other.connect for one, other in pairs), n=4)
            found[name] |= {
                "connect_p50_us": round(case.median("connect") / 1000, 2),
                "connect_p99_us": round(case.median("connect_p99") / 1000, 2),
                "to_direct": round(median, 3),
                "low": round(low, 3),
                "high": round(high, 3),
            }
    return found


COLUMNS: Final = (
    *("connect_p50_us", "connect_p99_us", "to_direct", "low", "high"),
    *("answer_p50_us", "answer_to_direct", "per_second"),
)


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
    print(f"{'':<27}" + "".join(f"{column:>17}" for column in COLUMNS))
    for name, fields in found.items():
        print(f"{name:<27}" + "".join(f"{fields.get(column, '-'):>17}" for column in COLUMNS))
    if options.save:
        results.save("connect", found)


if __name__ == "__main__":
    main()
