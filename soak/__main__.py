"""Run the whole product under all failures at once: `python -m soak [--seconds N] [--seed N]`.

It runs in network and mount namespaces and cgroups of its own, as root. It prints the numbers of actions and connects,
and every violation with the events around it; docs/soak.md has the conditions. Exit code 1 after a violation.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from clb_discovery.demo.private_network import enter_private_network
from soak import leaks, onlookers, traffic
from soak.actors import ACTORS, EJECT_MOST
from soak.counters import differences
from soak.failures import EJECT_SECONDS, Ejection
from soak.history import History
from soak.judge import Judge, Violation
from soak.keeper import KEPT_NICE, Keeper
from soak.memory import memory_cgroup
from soak.record import read
from soak.scene import SERVICES, STEADY, ZONE, ipv4, ipv6, port
from soak.stage import Stage
from soak.world import World
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe
from tests.support.ending import ended_by_signals
from tests.support.process import wait_until
from tests.support.sidecar import clb, status

HERE: Final = Path(__file__).parent
INSTANCES: Final = (traffic.KILLED, traffic.KEPT)
CLONE_NEWNS: Final = 0x00020000
DISK: Final = "size=256k"
"""Size of the state and run-time directories, which are small so that they can be filled."""
SHOWN: Final = 20


def main() -> int:
    """Soak; return 1 after a violation."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31), help="repeats a schedule")
    parser.add_argument("--keep", action="store_true", help="leave the folder with all logs behind")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="clb-soak-"))
    print(f"soak: {options.seconds} s with --seed {options.seed}; logs in {folder}", flush=True)
    enter_private_network()
    _enter_private_mounts()
    _prepare_network()
    with (folder / "history.log").open("w") as log:
        run = Run(folder, History(log), options.seconds, options.seed)
        run.run()
    well = run.report()
    if well and not options.keep:
        shutil.rmtree(folder)
    return 0 if well else 1


class Run:
    """One soak."""

    def __init__(self, folder: Path, history: History, seconds: int, seed: int) -> None:
        self._folder = folder
        self._history = history
        self._seconds = seconds
        self._seed = seed
        self._judge = Judge(history)
        self._clients = traffic.clients()
        self._samples: list[leaks.Sample] = []
        self._ejections: list[Ejection] = []
        self._starts = 0

    def run(self) -> None:
        """Set everything up, let it run, and judge."""
        with ExitStack() as stack:
            programs = _compiled(self._folder)
            disk = stack.enter_context(_small_disk(self._folder))
            cgroups = {instance: stack.enter_context(made_cgroup()) for instance in INSTANCES}
            memory = stack.enter_context(memory_cgroup())
            world = World(self._folder, self._history, programs["server"])
            for instance in INSTANCES:
                stack.callback(wipe, instance)
                loaded = clb("load", "--instance", instance, "--cgroup", cgroups[instance])
                assert loaded.returncode == 0, loaded.stderr
            stack.enter_context(world.running())
            keepers = []
            for instance in INSTANCES:
                consul = world.agent.url if instance == traffic.KILLED else world.poll_cutter.url
                options = [*_options(world, self._folder), "--consul", consul, "--cgroup", str(cgroups[instance])]
                options += ["--state-dir", str(disk / "state"), "--metrics", onlookers.METRICS[instance]]
                procs = memory.path / "cgroup.procs" if instance == traffic.KILLED else Path("/dev/null")
                keepers.append(Keeper(self._history, instance, self._folder, options, procs))
                keepers[-1].nice = KEPT_NICE if instance == traffic.KEPT else 0
                keepers[-1].start()
                stack.callback(keepers[-1].stop)
                self._settle(world, instance)
            before = {instance: leaks.pins(instance) for instance in INSTANCES}
            acting = Stage(world, keepers, memory, disk, self._seed)
            with traffic.connecting(self._folder, programs["client"], cgroups) as processes:
                with acting.acting([*ACTORS, *onlookers.ONLOOKERS]):
                    self._go_on(acting, processes)
                for instance in INSTANCES:
                    self._settle(world, instance)
            self._take_all()
            self._judge.violations += [Violation(*objection) for objection in acting.objections]
            self._ejections = acting.ejections
            self._judge_end(keepers, cgroups, before)

    def _go_on(self, acting: Stage, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        end = time.monotonic() + self._seconds
        told = time.monotonic()
        while time.monotonic() < end and not acting.stop.wait(2.0):
            self._take_all()
            if acting.kept.process and acting.kept.process.poll() is None:
                self._samples.append(leaks.sample(acting.kept.process.pid))
            for name, process in processes.items():
                assert process.poll() is None, f"client {name} has ended; see clients.log"
            if time.monotonic() - told > 30:
                told = time.monotonic()
                tries, wrong = self._judge.tries.total(), len(self._judge.violations)
                print(f"soak: {end - told:4.0f} s left; {tries} connects, {wrong} violations", flush=True)
        if acting.failed:
            raise acting.failed[0]

    def _take_all(self) -> None:
        for name, file in traffic.written(self._folder):
            self._judge.take(self._clients[name], read(file))
            file.unlink()

    def _settle(self, world: World, instance: str) -> None:
        """Wait until the kernel has the servers of discovery."""

        def settled() -> bool:
            found = {
                (one["address"], one["protocol"]): one["real_servers"] for one in status(instance)["virtual_servers"]
            }
            return all(
                {(server["address"], server["port"]) for server in found.get((vip, "tcp"), ())}
                == {(address(number), port(number)) for number in world.named[service.name]}
                for service in SERVICES
                for vip, address in ((service.ipv4, ipv4), (service.ipv6, ipv6))
            )

        wait_until(settled, f"{instance} holds what discovery names", 90)

    def _judge_end(self, keepers: list[Keeper], cgroups: Mapping[str, Path], before: Mapping[str, Any]) -> None:
        found = self._judge.violations
        self._judge.judge_failures(self._ejections)
        for keeper in keepers:
            document = status(keeper.instance)
            found += [Violation(0, what) for what in differences(keeper.instance, document, self._judge)]
            found += [Violation(*violation) for violation in keeper.violations]
            found += [Violation(0, objection) for objection in keeper.objections()]
            found += [Violation(0, f"{keeper.instance}: {what}") for what in leaks.leftovers(keeper.instance)]
            if leaks.pins(keeper.instance) != before[keeper.instance]:
                found.append(Violation(0, f"{keeper.instance}: pins are not what they were"))
            left = [path.name for path in cgroups[keeper.instance].iterdir() if path.is_dir()]
            found += [Violation(0, f"{keeper.instance}: the cgroup {name} is left behind") for name in left]
            for name in left:
                (cgroups[keeper.instance] / name).rmdir()
            code = keeper.stop()
            if code:
                found.append(Violation(0, f"{keeper.instance}: SIGTERM ends the sidecar with {code}"))
        self._starts = keepers[0].starts
        found += [Violation(0, f"the sidecar that runs all the time has {what}") for what in leaks.grown(self._samples)]

    def report(self) -> bool:
        """Print the results; return whether there was no violation."""
        judge, samples = self._judge, self._samples
        print(f"\n{judge.tries.total()} connects: " + ", ".join(f"{n} {name}" for name, n in judge.by_client.items()))
        print(f"failed with a failed server: {judge.failed.total()}, unanswered by one: {judge.unanswered.total()}")
        for what, those in (
            ("failures that cost connects", judge.costs.kinds),
            ("reads on used connections", judge.used),
        ):
            print(f"{what}: " + ", ".join(f"{n} {name}" for name, n in sorted(those.items())))
        print(f"one failure cost at most {judge.costs.most} connects to a virtual server with the sidecar alive")
        print(f"ejections that sidecars logged: {len(self._ejections)}")
        print(f"{self._starts} starts of the sidecar that is killed")
        for service in (STEADY, ZONE):
            delays = judge.delays(traffic.KEPT, service)
            if len(delays) > 1:
                cuts = statistics.quantiles(delays, n=100)
                print(
                    f"{service.source}: from a change to the first connect that shows it, of {len(delays)}: "
                    f"median {cuts[49] * 1000:.0f} ms, 99 of 100 within {cuts[98] * 1000:.0f} ms"
                )
        if samples:
            last = samples[-1]
            print(
                f"the sidecar that runs all the time: {last.kib >> 10} MiB, {leaks.slope(samples):+.0f} KiB a minute "
                f"in the second half; {samples[0].descriptors} and {last.descriptors} descriptors, "
                f"{last.threads} threads"
            )
        for violation in judge.violations[:SHOWN]:
            print(f"\nVIOLATION {violation.what}")
            if violation.time:
                print(f"  at {(violation.time - self._history.start) / 1e9:.3f}; what was done around it:")
                print(*("  " + line for line in self._history.around(violation.time)), sep="\n")
        print(f"\nsoak: {len(judge.violations)} violations with --seed {self._seed}")
        return not judge.violations


def _options(world: World, folder: Path) -> list[str]:
    """Return the options of a sidecar that follows all services."""
    text = "".join(
        f'[[service]]\nname = "{service.name}"\nvip = "{service.vips}"\nalgorithm = "{service.algorithm}"\n'
        + (f'consul = "{service.name}"\n' if service.source == "consul" else f'srv = "_{service.name}._tcp.example"\n')
        + service.options
        for service in SERVICES
    )
    file = folder / "clb.toml"
    file.write_text(text)
    options = ["--config", str(file), "--resolver", world.dns.address]
    options += ["--min-ttl", "100ms", "--max-ttl", "100ms", "--hold", "5s", "--linger", "0"]
    options += ["--real-range", "10.1.0.0/16", "--real-range", "fd01::/64"]
    return [*options, "--eject-time", f"{EJECT_SECONDS}s", "--eject-max", f"{EJECT_MOST:g}s"]


def _enter_private_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        sys.exit("soak: cannot make a mount namespace; run as root")
    subprocess.run(["mount", "--make-rslave", "/"], check=True)


def _prepare_network() -> None:
    for command in ("route add local 10.1.0.0/16 dev lo", "-6 route add local fd01::/64 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("16384 65535")
    Path("/proc/sys/net/ipv6/ip_nonlocal_bind").write_text("1")


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system for the state and run-time directories of sidecars."""
    disk, run = folder / "disk", Path("/run/clb-discovery")
    for place in (disk, run):
        place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "clb-soak", disk], check=True)
    try:
        for name in ("state", "run"):
            (disk / name).mkdir()
        subprocess.run(["mount", "--bind", disk / "run", run], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", run], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def _compiled(folder: Path) -> dict[str, Path]:
    more: dict[str, tuple[str, ...]] = {"client": (), "server": (), "clock.so": ("-shared", "-fPIC", "-ldl")}
    for name, options in more.items():
        source = (HERE / name).with_suffix(".c")
        command = ["clang", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(folder / name), str(source), *options]
        subprocess.run(command, check=True)
    return {name: folder / name for name in more}


if __name__ == "__main__":
    with ended_by_signals():
        sys.exit(main())
