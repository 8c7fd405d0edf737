"""What applications see when a real server fails, with ours and with others: `make bench-failure`.

Ten real servers behind a link, four clients that make one short connection after the other, and one server that fails.
Each system has its own network namespaces, and each run starts with all servers at work. A request has failed if its
response does not come within the client's patience. Run as root.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from benchmarks import haproxy, results
from benchmarks.fleet_that_fails import SCENES, Fleet, Scene, fleet, others
from benchmarks.ways import VIP, VIP_PORT, in_namespace, listener
from tests.support import namespaces
from tests.support.cgroups import inside, made_cgroup
from tests.support.dataplane import wipe
from tests.support.sidecar import Sidecar, sidecar, wait_for_pool
from tests.support.tun import ip

CLIENTS: Final = 4
PATIENCE: Final = {"500 ms": 0.5, "none": 0.0}
WARM_UP: Final = 2.0
FIRST: Final = 10.0
"""Seconds after the failure that are reported by themselves."""
SECONDS: Final = 25.0
"""From the failure to the end."""
SLOW: Final = 0.1
_CHECKED: Final = " check inter 2s"
_REDISPATCH: Final = "defaults\n    option redispatch\n"
_NGINX: Final = """\
load_module modules/ngx_stream_module.so;
daemon off;
error_log /dev/null;
pid {folder}/nginx.pid;
events {{}}
stream {{
    upstream bench {{ random; {servers} }}
    server {{ listen {vip}:{port}; proxy_pass bench; proxy_connect_timeout 1s; proxy_next_upstream on; }}
}}
"""


class System(NamedTuple):
    """A running way to balance."""

    set_servers: Callable[[Sequence[str]], None]
    """Gives it the servers that discovery lists now."""
    cgroup: Path | None = None
    """The cgroup that clients need, if any."""


def _config(servers: Sequence[str]) -> str:
    return f'[[service]]\nname = "bench"\nvip = "{VIP}:{VIP_PORT}"\nservers = {json.dumps(list(servers))}\n'


@contextmanager
def ours(near: Path, servers: Sequence[str], folder: Path, *, killed: bool = False) -> Iterator[System]:
    """Run a sidecar at its defaults; its network namespace is that of the clients.

    :param killed: kill it before the server fails.
    """
    instance, config = f"bench-{uuid4().hex[:8]}", folder / "clb.toml"
    config.write_text(_config(servers))
    with ExitStack() as stack:
        cgroup = stack.enter_context(made_cgroup())
        stack.callback(wipe, instance)
        run = sidecar(instance, cgroup, folder, ["--config", str(config)])
        running: Sidecar = namespaces.inside(near, partial(stack.enter_context, run))
        wait_for_pool(instance, VIP, dict.fromkeys(servers, 1))
        if killed:
            running.kill()

        def set_servers(now: Sequence[str]) -> None:
            config.write_text(_config(now))
            if not killed:
                running.process.send_signal(signal.SIGHUP)

        yield System(set_servers, cgroup)


@contextmanager
def iptables(near: Path, servers: Sequence[str], _: Path) -> Iterator[System]:
    """Let iptables choose a server at random."""

    def set_servers(now: Sequence[str]) -> None:
        rules = [f"-A OUTPUT -p tcp -d {VIP} --dport {VIP_PORT} {chance(len(now) - at)} -j DNAT --to-destination {to}"
                 for at, to in enumerate(now)]  # fmt: skip
        text = "\n".join(["*nat", *rules, "COMMIT", ""])
        subprocess.run(in_namespace(near, ["iptables-restore"]), input=text, text=True, check=True)

    def chance(left: int) -> str:
        return f"-m statistic --mode random --probability {1 / left:.6f}" if left > 1 else ""

    set_servers(servers)
    namespaces.inside(near, partial(ip, "route", "add", "default", "via", gateway(servers)))
    yield System(set_servers)


def gateway(servers: Sequence[str]) -> str:
    """Return a host behind the link, through which the VIP is routed before its address is changed."""
    return servers[0].partition(":")[0]


@contextmanager
def haproxy_with_checks(near: Path, servers: Sequence[str], folder: Path) -> Iterator[System]:
    """Run HAProxy with checks of TCP every 2 s, and another server where a connect fails."""
    config, control = folder / "haproxy.cfg", folder / "haproxy.socket"
    text = haproxy.written_out(control, f"{VIP}:{VIP_PORT}", dict.fromkeys(servers, 1))
    text = text.replace("defaults\n", _REDISPATCH).replace(" weight 1\n", f" weight 1{_CHECKED}\n")
    config.write_text(text)

    def set_servers(now: Sequence[str]) -> None:
        for number, server in enumerate(servers):
            if server not in now:
                haproxy.ask(control, f"disable server bench/s{number}")

    namespaces.inside(near, partial(ip, "address", "add", f"{VIP}/32", "dev", "lo"))
    with listener(["haproxy", "-f", config], near, VIP, VIP_PORT):
        yield System(set_servers)


@contextmanager
def nginx(near: Path, servers: Sequence[str], folder: Path) -> Iterator[System]:
    """Run nginx as a proxy of TCP, which takes the next server where a connect fails."""
    config = folder / "nginx.conf"

    def write(now: Sequence[str]) -> None:
        lines = " ".join(f"server {server};" for server in now)
        config.write_text(_NGINX.format(folder=folder, servers=lines, vip=VIP, port=VIP_PORT))

    def set_servers(now: Sequence[str]) -> None:
        write(now)
        subprocess.run(in_namespace(near, ["nginx", "-c", config, "-s", "reload"]), check=True, capture_output=True)

    write(servers)
    namespaces.inside(near, partial(ip, "address", "add", f"{VIP}/32", "dev", "lo"))
    with listener(["nginx", "-c", config], near, VIP, VIP_PORT):
        yield System(set_servers)


SYSTEMS: Final[dict[str, Callable[[Path, Sequence[str], Path], AbstractContextManager[System]]]] = {
    "clb-discovery": ours,
    "clb-discovery, sidecar killed": partial(ours, killed=True),
    "iptables DNAT": iptables,
    "HAProxy, checks": haproxy_with_checks,
    "nginx stream": nginx,
}


class Request(NamedTuple):
    """One request of a client, in seconds from the failure."""

    began: float
    took: float
    answered: bool


def play(scene: Scene, servers: Fleet, system: System) -> float:
    """Let one server fail, and what follows from it; return when it failed, in seconds of CLOCK_MONOTONIC."""
    victim = servers.hosts[3]
    time.sleep(WARM_UP)
    failed = time.monotonic()
    scene.fail(servers, victim)
    if scene.removed_after:
        time.sleep(scene.removed_after)
        system.set_servers(others(servers.hosts, [victim]))
    if scene.back_after:
        time.sleep(scene.back_after)
        servers.come_back(victim)
    return failed


def measure(name: str, scene: Scene, patience: float) -> list[Request]:
    """Play a scene with a system; return the requests of the clients."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        near = stack.enter_context(namespaces.by_mount())
        servers = stack.enter_context(fleet(near))
        system = stack.enter_context(SYSTEMS[name](near, others(servers.hosts, []), folder))
        seconds = WARM_UP + SECONDS + scene.back_after
        program = [sys.executable, "-m", "benchmarks.failing_client", VIP, VIP_PORT, patience, CLIENTS, seconds]
        command = in_namespace(near, [str(part) for part in program])
        if system.cgroup:
            command = inside(system.cgroup, command)
        client = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        failed = play(scene, servers, system)
        output, _ = client.communicate()
    return [Request(began - failed, took, answered) for began, took, answered in json.loads(output)]


def summary(requests: Sequence[Request]) -> dict[str, float]:
    """Return the shares of failed and of slow requests in percent, and the time until none failed, if there was one."""
    found: dict[str, float] = {}
    for period, after, before in (("first", 0.0, FIRST), ("later", FIRST, float("inf"))):
        these = [one for one in requests if after <= one.began < before]
        slow = sum(one.answered and one.took > SLOW for one in these)
        found[f"requests_{period}"] = len(these)
        found[f"failed_{period}"] = percent(sum(not one.answered for one in these), len(these))
        found[f"slow_{period}"] = percent(slow, len(these))
    last = max((one.began for one in requests), default=0.0)
    failures = [one.began for one in requests if one.began >= 0 and not one.answered]
    quiet = max(failures, default=0.0)
    if quiet < last - 2:
        found["none_fails_after_s"] = round(quiet, 1)
    return found


def percent(part: int, whole: int) -> float:
    """Return a share in percent."""
    return round(100 * part / whole, 2) if whole else 0.0


def chosen(names: Sequence[str] | None, known: dict[str, object]) -> list[str]:
    """Return the names on the command line, or all."""
    return [name for name in known if not names or name in names]


def main() -> None:
    """Measure all systems in all scenes."""
    parser = argparse.ArgumentParser(prog="failure", description=__doc__)
    parser.add_argument("--scene", action="append", help="one of the scenes, repeatable (default: all)", choices=SCENES)
    parser.add_argument("--system", action="append", help="one of the systems, likewise", choices=SYSTEMS)
    parser.add_argument("--patience", action="append", help="one of the patiences, likewise", choices=PATIENCE)
    parser.add_argument("--save", action="store_true", help=f"keep the results in {results.FOLDER}")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for scene in chosen(options.scene, dict(SCENES)):
        for patience in chosen(options.patience, dict(PATIENCE)):
            rows = {}
            for system in chosen(options.system, dict(SYSTEMS)):
                rows[system] = summary(measure(system, SCENES[scene], PATIENCE[patience]))
            print(f"\n{scene}; patience: {patience}")
            print(*results.table(rows), sep="\n", flush=True)
            found.setdefault(scene, {})[patience] = rows
    if options.save:
        results.save("failure", found)


if __name__ == "__main__":
    main()
