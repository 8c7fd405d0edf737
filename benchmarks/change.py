"""How soon a change in Consul takes effect, compared with HAProxy with SRV records and a poller: `make bench-change`.

There is a real Consul agent, and for each way a service with one real server that stays and one that comes and goes.
The latter has nine times the weight, so nine of ten connects show whether it is in use. A client connects some hundred
times a second and reads the name of the server. Two times are measured, both from the agent's response to the change:
until the first connect that reaches the added real server, and until the last one that reaches the removed one. Before
each change there is a random pause of at most the way's own period, so that no phase is preferred. Run as root.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import haproxy, results
from benchmarks.process import SERVER, compiled
from clb_discovery.demo.private_network import enter_private_network
from tests.support.cgroups import entered, made_cgroup
from tests.support.consul import ConsulAgent
from tests.support.dataplane import wipe
from tests.support.process import running, wait_until
from tests.support.sidecar import sidecar

INSTANCE: Final = "bench-change"
VIP_PORT: Final = 80
STEADY, GUEST = 1, 2
"""The numbers of the real servers: the one that stays, and the one that comes and goes."""
PORTS: Final = {STEADY: 7001, GUEST: 7002}
WEIGHTS: Final = {STEADY: 256, GUEST: 9 * 256}
"""HAProxy divides the weight of an SRV record by 256."""
BETWEEN: Final = 0.002
"""Seconds between two connects of the client."""
GONE: Final = 30
"""After so many connects in a row to others the removed server is out of use. By chance: one in 10^30."""
GIVEN_UP: Final = 60.0
CHANGES: Final = 50
POLL: Final = 10.0
"""Seconds between two polls."""


class Way(NamedTuple):
    """One way to follow a service, which has its name."""

    name: str
    service: str
    vip: str
    period: float
    """Seconds of its polling interval, if it polls."""
    turns: int
    """Changes in each round: fast ways get more of them."""


OURS: Final = Way("clb-discovery", "ours", "10.64.0.1", 0.5, 4)
SRV: Final = Way("HAProxy, SRV records", "srv", "10.64.0.2", 1.0, 2)


def polling(seconds: float) -> Way:
    """Return the way that polls at this interval."""
    return Way(f"HAProxy, polled every {seconds:g} s", "polled", "10.64.0.3", seconds, 1)


def who(vip: str) -> int:
    """Connect to the VIP and return the number of the server, 0 without an answer."""
    try:
        with socket.create_connection((vip, VIP_PORT), timeout=1) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
            sock.sendall(b"?")
            return int.from_bytes(sock.recv(4), "big")
    except OSError:
        return 0


def leads(way: Way) -> bool:
    """Return whether the way leads to the real server that stays."""
    return who(way.vip) == STEADY


def until_first(ask: Callable[[], int], began: float) -> float:
    """Return after how many milliseconds the first connect reaches the guest."""
    while ask() != GUEST:
        assert time.monotonic() < began + GIVEN_UP, "nobody has seen the new real server"
        time.sleep(BETWEEN)
    return (time.monotonic() - began) * 1000


def until_last(ask: Callable[[], int], began: float) -> float:
    """Return after how many milliseconds the last connect reaches the guest; 0 if none does."""
    last, elsewhere = began, 0
    while elsewhere < GONE:
        elsewhere += 1
        if ask() == GUEST:
            last, elsewhere = time.monotonic(), 0
        assert time.monotonic() < began + GIVEN_UP, "the removed real server is still in use"
        time.sleep(BETWEEN)
    return (last - began) * 1000


class Times(NamedTuple):
    """The times of one way, in milliseconds."""

    added: list[float]
    removed: list[float]


def register(agent: ConsulAgent, service: str, number: int) -> str:
    """Register a real server with Consul; return its id."""
    weight = WEIGHTS[number]
    return agent.register(service, PORTS[number], f"10.1.0.{number}", weights=(weight, weight))


def change(agent: ConsulAgent, way: Way, times: Times) -> None:
    """Add the guest, and remove it."""
    ask = partial(who, way.vip)
    time.sleep(random.uniform(0, way.period))  # noqa: S311  # no secret
    known = register(agent, way.service, GUEST)
    times.added.append(until_first(ask, time.monotonic()))
    time.sleep(random.uniform(0, way.period))  # noqa: S311  # as above
    agent.deregister(known)
    times.removed.append(until_last(ask, time.monotonic()))


@contextmanager
def followed(agent: ConsulAgent, folder: Path, polled: Way) -> Iterator[Path]:
    """Let each way follow its service; yield the cgroup in which ours balances."""
    with ExitStack() as stack:
        cgroup = stack.enter_context(made_cgroup())
        stack.callback(wipe, INSTANCE)
        ours = ["--consul", agent.url, "--service", f"{OURS.service}={OURS.vip}:{VIP_PORT}"]
        stack.enter_context(sidecar(INSTANCE, cgroup, folder, ours))
        config, control = folder / "srv.cfg", folder / "srv.socket"
        record = f"_{SRV.service}._tcp.service.consul"
        bind = f"{SRV.vip}:{VIP_PORT}"
        config.write_text(haproxy.following_srv(control, bind, f"127.0.0.1:{agent.dns_port}", record, 10))
        stack.enter_context(running(["haproxy", "-f", config], folder / "srv.log"))
        poller = [sys.executable, "-m", "benchmarks.poller", agent.url, polled.service, f"{polled.vip}:{VIP_PORT}"]
        poller += [str(polled.period), str(folder)]
        stack.enter_context(running(poller, folder / "poller.log"))
        yield cgroup


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return median, 99th of 100 and worst."""
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98] if len(times) > 1 else times[0]
    found = {"p50_ms": statistics.median(times), "p99_ms": p99, "worst_ms": max(times)}
    return {"changes": len(times), **{name: round(value, 1) for name, value in found.items()}}


def measure(agent: ConsulAgent, folder: Path, rounds: int, polled: Way) -> dict[str, Times]:
    """Measure changes of all ways, in turns."""
    ways = (OURS, SRV, polled)
    found = {way.name: Times([], []) for way in ways}
    program = compiled(SERVER, folder)
    with ExitStack() as stack:
        for number, port in PORTS.items():
            command = [str(program), str(number), str(port), f"10.1.0.{number}"]
            stack.enter_context(running(command, folder / f"server-{number}.log"))
            for way in ways if number == STEADY else ():
                register(agent, way.service, number)
        cgroup = stack.enter_context(followed(agent, folder, polled))
        stack.enter_context(entered(cgroup))
        for way in ways:
            wait_until(partial(leads, way), f"{way.name} leads to the real server")
            change(agent, way, Times([], []))  # the first run includes one-time work
        order = [way for way in ways for _ in range(way.turns)]
        for _ in range(rounds):
            random.shuffle(order)
            for way in order:
                change(agent, way, found[way.name])
    return found


def main() -> None:
    """Measure all ways, interleaved."""
    parser = argparse.ArgumentParser(prog="change", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=CHANGES, help="changes for the slowest way (default: %(default)s)"
    )
    parser.add_argument("--poll", type=float, default=POLL, help="seconds between two polls (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    enter_private_network()
    for network in ("10.1.0.0/24", "10.64.0.0/24"):
        subprocess.run(["ip", "route", "add", "local", network, "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory() as name, ConsulAgent(Path(name)) as agent:
        found = measure(agent, Path(name), options.rounds, polling(options.poll))
    measured = {
        name: {"added": summary(times.added), "removed": summary(times.removed)} for name, times in found.items()
    }
    for name, kinds in measured.items():
        print(name, *(f"  {kind:<8} {fields}" for kind, fields in kinds.items()), sep="\n")
    if options.save:
        results.save("change", measured)


if __name__ == "__main__":
    main()
