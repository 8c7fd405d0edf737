"""The ways to balance that benchmarks compare, each with ten real servers of its own.

All of them use the loopback of network namespaces. Conntrack slows everything in its namespace, so iptables, nftables
and HAProxy have their own; direct and ours share a bare one, and our clients are in a cgroup.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import haproxy
from benchmarks.hooks import LEAN
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.model import own_servers
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Protocol, RealServer, Vip, VirtualServer
from clb_discovery.publication.plan import plan
from tests.support import namespaces
from tests.support.cgroups import inside, made_cgroup
from tests.support.dataplane import wipe
from tests.support.knot import KnotServer
from tests.support.process import wait_until

REAL: Final = [f"10.1.0.{number}" for number in range(1, 11)]
PORT: Final = 7000
VIP: Final = "10.64.0.1"
VIP_PORT: Final = 80
OWN_PORT: Final = 81
"""The port of the VIP that leads to the client itself."""
FIRST_OWN: Final = 7001
"""The first of the ports on which clients listen."""
DNS_PORT: Final = 5300
PORTS: Final = ((VIP_PORT, PORT), (OWN_PORT, FIRST_OWN))
"""Ports of the VIP, and their destinations if there is only one client."""

DIRECT: Final = "direct"
AGAIN: Final = "direct again"
SHIPPED: Final = "clb-discovery, random"
"""The scheduler of a service without a setting."""
IPTABLES: Final = "iptables DNAT"
NFTABLES: Final = "nftables DNAT"
HAPROXY: Final = "HAProxy, TCP"
OURS: Final[dict[str, tuple[str, Algorithm, PassiveHealth]]] = {
    SHIPPED: ("10.64.0.1", Algorithm.RANDOM, PassiveHealth()),
    "clb-discovery, round-robin": ("10.64.0.2", Algorithm.ROUND_ROBIN, PassiveHealth()),
    "clb-discovery, least-conn": ("10.64.0.3", Algorithm.LEAST_CONN, PassiveHealth()),
    "clb-discovery, lean": ("10.64.0.4", Algorithm.RANDOM, LEAN),
}


class Way(NamedTuple):
    """The way of a client to the real servers."""

    namespace: Path
    address: str
    port: int
    """The port of that address that leads to the real servers."""
    own: int
    """The port on which the client has to listen, for clients that connect to themselves."""
    own_port: int
    """The port of that address that leads to the client's listener; 0 for none."""
    cgroup: Path | None = None
    """The cgroup that the client needs, if any."""

    def client(self, *command: str | Path) -> list[str]:
        """Return the command line of a program as a client of this way."""
        entered = in_namespace(self.namespace, command)
        return inside(self.cgroup, entered) if self.cgroup else entered


def in_namespace(namespace: Path, command: Sequence[str | Path]) -> list[str]:
    """Return the command line that runs a program in a network namespace."""
    return ["nsenter", f"--net={namespace}", *map(str, command)]


def is_listening(process: subprocess.Popen[bytes], namespace: Path, address: str, port: int) -> bool:
    """Return whether a process listens there; fail if it has ended."""
    assert process.poll() is None, f"{process.args!r} does not run"
    command = in_namespace(namespace, ["ss", "-Hltn", "src", f"{address}:{port}"])
    return bool(subprocess.run(command, check=True, capture_output=True).stdout)


@contextmanager
def listener(command: Sequence[str | Path], namespace: Path, address: str, port: int) -> Iterator[None]:
    """Run a program in a network namespace while the block runs, and wait until it listens."""
    with subprocess.Popen(
        in_namespace(namespace, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            listens = partial(is_listening, process, namespace, address, port)
            wait_until(listens, f"{command[0]} listens at {address}:{port}")
            yield
        finally:
            process.terminate()  # nginx then ends its workers


@contextmanager
def place(servers: Sequence[str | Path]) -> Iterator[Path]:
    """Make a network namespace in which this command runs the real servers; yield its file."""
    with namespaces.by_mount() as namespace:
        for network in ("10.1.0.0/24", "10.64.0.0/24"):
            route = ["ip", "route", "add", "local", network, "dev", "lo"]
            subprocess.run(in_namespace(namespace, route), check=True)
        with listener(servers, namespace, REAL[-1], PORT):
            yield namespace


def publish(pins: Pins) -> None:
    """Publish a virtual server for each of our cases."""
    wanted = own_servers.virtual_servers(pins.instance)
    for own, (address, algorithm, health) in enumerate(OURS.values(), FIRST_OWN):
        for port, real_port in ((VIP_PORT, PORT), (OWN_PORT, own)):
            pool = tuple(RealServer(0, parse_address(server), real_port, 1) for server in REAL)
            vip = Vip(parse_address(address), port, Protocol.TCP)
            wanted[vip] = VirtualServer(vip, "bench", "bench", algorithm, pool, health)
    with Maps(pins) as maps:
        maps.apply(plan(maps.read(), wanted, complete=True).steps)


def add_iptables(namespace: Path, ports: Sequence[tuple[int, int]] = PORTS) -> None:
    """Let iptables choose a real server at random.

    :param ports: of the VIP, and their destinations.
    """
    for port, real_port in ports:
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
def dns(namespace: Path) -> Iterator[str]:
    """Run a DNS server with the real servers in an SRV record; yield its address."""
    knot = KnotServer(port=DNS_PORT)
    records = [f"s{number} A {address}" for number, address in enumerate(REAL)]
    records += [f"_bench._tcp SRV 0 1 {PORT} s{number}" for number in range(len(REAL))]
    knot.write("\n".join(records))
    with ExitStack() as stack:
        namespaces.inside(namespace, partial(stack.enter_context, knot))
        yield knot.address


@contextmanager
def proxy(namespace: Path, folder: Path) -> Iterator[None]:
    """Run HAProxy at the VIP, with one thread, and wait until it knows all real servers."""
    config, control = folder / "haproxy.cfg", folder / "haproxy.socket"
    with dns(namespace) as nameserver:
        bind = f"{VIP}:{VIP_PORT}"
        config.write_text(haproxy.following_srv(control, bind, nameserver, "_bench._tcp.example", len(REAL)))
        with listener(["haproxy", "-f", config], namespace, VIP, VIP_PORT):
            wait_until(
                lambda: haproxy.usable(haproxy.ask(control, "show stat")) == len(REAL), "HAProxy has all servers"
            )
            yield


def prepare(stack: ExitStack, folder: Path, instance: str, servers: Sequence[str | Path]) -> dict[str, Way]:
    """Set up all ways.

    :param stack: undoes it.
    :param instance: for our way.
    :param servers: the command that serves `PORT` of every address of `REAL`.
    """
    pins = Pins(instance)
    cgroup = stack.enter_context(made_cgroup())
    stack.enter_context(Instance(instance).locked())
    stack.callback(wipe, instance)
    bare = stack.enter_context(place(servers))
    namespaces.inside(bare, partial(loader.load, pins, cgroup))  # the clients' namespace judges servers
    publish(pins)
    after = FIRST_OWN + len(OURS)
    ways = {
        DIRECT: Way(bare, REAL[0], PORT, after, after),
        AGAIN: Way(bare, REAL[0], PORT, after + 1, after + 1),
        "clb-discovery, elsewhere": Way(bare, REAL[0], PORT, after + 2, after + 2, cgroup),
    }
    for own, (name, (address, _, _)) in enumerate(OURS.items(), FIRST_OWN):
        ways[name] = Way(bare, address, VIP_PORT, own, OWN_PORT, cgroup)
    for name, add in ((IPTABLES, add_iptables), (NFTABLES, add_nftables)):
        namespace = stack.enter_context(place(servers))
        add(namespace)
        ways[name] = Way(namespace, VIP, VIP_PORT, FIRST_OWN, OWN_PORT)
    namespace = stack.enter_context(place(servers))
    stack.enter_context(proxy(namespace, folder))
    ways[HAPROXY] = Way(namespace, VIP, VIP_PORT, FIRST_OWN, 0)
    return ways
