"""What applications see when real servers fail, with ours and with others: `make bench-failure`.

Ten real servers are behind a link. Clients make short connections at an even rate, and one server, or more, fails. All
systems are measured at the same time, each in network namespaces and a process of its own, with little load. A request
has failed if its response does not come within the client's patience. Run as root.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import results
from benchmarks.balancers import FOR_POOLS, SYSTEMS, Pool, System, Systems
from benchmarks.failure_figures import Request, counts, waits
from benchmarks.fleet_that_fails import PORT, SCENES, SERVERS, Fleet, Scene, fleet
from benchmarks.ways import VIP, VIP_PORT, in_namespace
from tests.support import namespaces
from tests.support.cgroups import inside

PER_SECOND: Final = 50
"""Requests to each system."""
PATIENCE: Final = {"500 ms": 0.5, "none": 0.0}
GRACE: Final = {"500 ms": 1.0, "none": 8.0}
"""Seconds from the start of the last request to the end."""
WARM_UP: Final = 8.0
"""Seconds before the failure: longer than programs rely on a sidecar that was killed."""
SECONDS: Final = 40.0
"""From the failure to the start of the last request."""
ROUNDS: Final = 2
VICTIM: Final = 3
CONNECTIONS: Final = 100
PAUSE: Final = 2.0
"""Seconds between two requests on an open connection."""
POOL_SECONDS: Final = 80.0
"""From the failure to the end, where connections stay open: longer than a proxy's usual time-out of 60 s."""


def play(scene: Scene, servers: Fleet, pool: Pool, system: System) -> float:
    """Let servers fail, and what follows from it; return when they failed, in seconds of CLOCK_MONOTONIC."""
    first = VICTIM if scene.fails < SERVERS else 0
    victims = servers.hosts[first : first + scene.fails]
    time.sleep(WARM_UP)
    failed = time.monotonic()
    for victim in victims:
        scene.fail(servers, victim)
    if scene.removed_after:
        time.sleep(scene.removed_after)
        system.set_servers(Pool([server for server in pool.first if server.partition(":")[0] not in victims]))
    if scene.back_after:
        time.sleep(scene.back_after)
        for victim in victims:
            servers.come_back(victim)
    return failed


def measure(systems: Systems, name: str, scene: Scene, *client: object) -> list[Request]:
    """Play a scene with a system; return the requests of the clients.

    :param client: the module that is the client, and its arguments.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        near = stack.enter_context(namespaces.by_mount())
        servers = stack.enter_context(fleet(near, SERVERS + scene.further))
        named = [f"{host}:{PORT}" for host in servers.hosts]
        pool = Pool(named[:SERVERS], named[SERVERS:])
        system = stack.enter_context(systems[name](near, pool, folder))
        module, *arguments = map(str, client)
        command = in_namespace(near, [sys.executable, "-m", module, VIP, str(VIP_PORT), *arguments])
        if system.cgroup:
            command = inside(system.cgroup, command)
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        failed = play(scene, servers, pool, system)
        output, _ = process.communicate()
    return [Request(began - failed, took, answered) for began, took, answered in json.loads(output)]


def connects(name: str, scene: str, patience: str, seconds: float) -> list[Request]:
    """Measure short connections."""
    times = PATIENCE[patience], PER_SECOND, WARM_UP + seconds, GRACE[patience]
    return measure(SYSTEMS, name, SCENES[scene], "benchmarks.failing_client", *times)


def open_connections(name: str, seconds: float) -> list[Request]:
    """Measure connections that stay open while a host vanishes."""
    client = "benchmarks.pooling_client", CONNECTIONS, PAUSE, WARM_UP + seconds
    return measure(FOR_POOLS, name, SCENES["silent"], *client)


def at_once(executor: Executor, work: Mapping[str, tuple[Any, ...]]) -> dict[str, list[Request]]:
    """Call functions at the same time, each in a process; return their results by the same names."""
    running = {name: executor.submit(*call) for name, call in work.items()}
    return {name: one.result() for name, one in running.items()}


def chosen(names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Return the names on the command line, or all."""
    return [name for name in known if not names or name in names]


def hurry() -> None:
    """Run this process and its children before others, which would delay requests."""
    os.nice(-19)
    of_session = Path("/proc/self/autogroup")  # where it exists, niceness counts only within a session
    if of_session.exists():
        of_session.write_text("-19", encoding="utf-8")


def options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="failure", description=__doc__)
    parser.add_argument("--scene", action="append", help="one of the scenes, repeatable (default: all)", choices=SCENES)
    parser.add_argument("--system", action="append", help="one of the systems, likewise", choices=SYSTEMS)
    parser.add_argument("--patience", action="append", help="one of the patiences, likewise", choices=PATIENCE)
    parser.add_argument(
        "--part", help="only short connects, or pools of open connections", choices=("connects", "pools")
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each scene is played (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after the failure (%(default)g)")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    return parser.parse_args()


def measure_connects(executor: Executor, chosen_by: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all systems in all scenes; yield what is known after each."""
    load = {"per_second": PER_SECOND, "rounds": chosen_by.rounds, "seconds": chosen_by.seconds}
    found: dict[str, Any] = {"load": load, "scenes": {}}
    runs: dict[tuple[str, str, str], list[list[Request]]] = {}
    systems = chosen(chosen_by.system, SYSTEMS)
    for _ in range(chosen_by.rounds):
        for scene in chosen(chosen_by.scene, SCENES):
            for patience in chosen(chosen_by.patience, PATIENCE):
                work = {name: (connects, name, scene, patience, chosen_by.seconds) for name in systems}
                for name, requests in at_once(executor, work).items():
                    runs.setdefault((scene, patience, name), []).append(requests)
                rows = {name: counts(runs[scene, patience, name]) for name in systems}
                show(f"{scene}; patience: {patience}", rows)
                found["scenes"].setdefault(scene, {})[patience] = rows
                yield found


def measure_pools(executor: Executor) -> dict[str, Any]:
    """Measure connections that stay open while a host vanishes."""
    pools = at_once(executor, {name: (open_connections, name, POOL_SECONDS) for name in FOR_POOLS})
    rows = {name: waits(requests, CONNECTIONS) for name, requests in pools.items()}
    show("open connections; a host vanishes", rows)
    return {"pools": rows}


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table."""
    print(f"\n{title}", *results.table(rows), sep="\n", flush=True)


def keep(found: Mapping[str, Any]) -> None:
    """Save results; a part that was not measured stays as it is."""
    before = results.kept().get("failure", {"measured": {}})["measured"]
    results.save("failure", {**before, **found})


def main() -> None:
    """Measure both parts."""
    chosen_by, began = options(), time.monotonic()
    hurry()
    found: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(len(SYSTEMS), len(FOR_POOLS)), mp_context=spawn) as executor:
        if chosen_by.part != "pools":
            for found in measure_connects(executor, chosen_by):
                if chosen_by.save:  # so that an interruption leaves what there is
                    keep(found)
        if chosen_by.part != "connects":
            found |= measure_pools(executor)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processors = round((used.ru_utime + used.ru_stime) / (time.monotonic() - began), 2)
    print(f"\n{processors} processors were in use by all of this")
    if "load" in found:
        found["load"]["processors"] = processors
    if chosen_by.save:
        keep(found)


if __name__ == "__main__":
    main()
