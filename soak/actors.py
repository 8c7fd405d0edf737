"""Changes and failures: each actor is a thread with its own random generator, so that a seed repeats its schedule."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from soak.history import BUSY, MACHINE, SECOND
from soak.keeper import KEPT_NICE
from soak.scene import CHECKED, FRAIL, MORTAL, STEADY, TIERS, ZONE, Service, Way
from soak.stage import Dice, Stage
from soak.world import POISON, World
from tests.support.faulty_dns import Fault

CHURN: Final = 10.0
"""Changes per second, in Consul and in the zone each."""
SLOW: Final = 0.3
"""A write that takes more seconds counts as trouble of the source."""
EJECT_MOST: Final = 4.0
"""Maximum seconds until a server that has returned is used again (`--eject-max`)."""
STANDS_STILL: Final = SECOND // 2
"""Nanoseconds by which a timer is late on a machine that is too busy for any time limit."""
IS_BUSY: Final = SECOND // 10
"""The same for the second within which a sidecar has to probe a server."""
YEARS: Final = 10 * 365 * 86400


def churn_consul(stage: Stage, dice: Dice) -> None:
    """Add or remove an instance in Consul's catalog."""
    _toggle(stage, dice, STEADY, "consul")


def churn_zone(stage: Stage, dice: Dice) -> None:
    """Add or remove a target in the zone."""
    _toggle(stage, dice, ZONE, "dns")


def _toggle(stage: Stage, dice: Dice, service: Service, source: str) -> None:
    world, history, began = stage.world, stage.history, time.monotonic()
    number = dice.choice(service.rotating)
    named = world.named[service.name]
    joins = number not in named
    history.note(source, f"{service.name} {'+' if joins else '-'}{number}")
    (named.add if joins else named.remove)(number)
    if joins:
        history.join(service.name, number)
    _until_done(stage, source, lambda: _write(world, service, number, joins=joins))
    if not joins:
        history.leave(service.name, number)
    stage.stop.wait(max(0.0, dice.uniform(0.5, 1.5) / CHURN - (time.monotonic() - began)))


def _write(world: World, service: Service, number: int, *, joins: bool) -> None:
    if service.source == "dns":
        world.write_zone()
    elif joins:
        world.register(service, number)
    else:
        world.deregister(service, number)


def _until_done(stage: Stage, source: str, write: Callable[[], None]) -> None:
    """Write until it is known to be done; a slow write counts as trouble of the source."""
    began = time.monotonic()
    with suppress(OSError):
        write()
        if time.monotonic() - began < SLOW:
            return
    stage.history.note(source, "is slow to take a change")
    with stage.history.trouble(source):
        while True:
            with suppress(OSError):
                write()
                break
            time.sleep(0.1)
    stage.history.note(source, "takes changes again")


def kill_sidecars(stage: Stage, dice: Dice) -> None:
    """Kill one of the sidecars every few seconds."""
    if not stage.stop.wait(dice.uniform(1.0, 8.0)):
        stage.killed.kill()


def die(stage: Stage, dice: Dice) -> None:
    """Let a real server die and return; at most as many at once as passive health may eject."""
    _fail(stage, dice, MORTAL)


def die_in_tiers(stage: Stage, dice: Dice) -> None:
    """Let one server of the first tier die and return."""
    _fail(stage, dice, TIERS)


def fail(stage: Stage, dice: Dice) -> None:
    """Let a real server die, or drop packets, and return."""
    _fail(stage, dice, FRAIL)


def fail_checks(stage: Stage, dice: Dice) -> None:
    """Let a real server with checks hang, or drop packets, and return."""
    _fail(stage, dice, CHECKED)


def _fail(stage: Stage, dice: Dice, service: Service) -> None:
    history, world = stage.history, stage.world
    number, way = dice.choice(service.mortal), dice.choice(service.ways)
    seconds = dice.uniform(0.1, 6.0 if way is Way.DIES else 12.0)
    at = history.note("failure", f"{service.name}: real server {number} {way} for {seconds:.1f} s")
    history.failing[way, number].open(at)
    world.fail(number, way)
    stage.stop.wait(seconds)
    world.repair(number, way)
    history.failing[way, number].close(time.monotonic_ns())
    history.note("failure", f"{service.name}: real server {number} is back")
    stage.stop.wait(EJECT_MOST + dice.uniform(0.0, 2.0))


def lie(stage: Stage, dice: Dice) -> None:
    """Let DNS misbehave for a while, shorter than the hold of removals."""
    if stage.stop.wait(dice.uniform(3.0, 12.0)):
        return
    fault, seconds = dice.choice(list(Fault)), dice.uniform(0.2, 2.5)
    stage.history.note("dns", f"lies for {seconds:.1f} s: {fault.value}")
    with stage.history.trouble("dns"):
        stage.world.dns.fault = fault
        stage.stop.wait(seconds)
        stage.world.dns.fault = None
    stage.history.note("dns", "tells the truth")


def trim(stage: Stage, dice: Dice) -> None:
    """For a while, let DNS return a random half of the service's records for each query."""
    if stage.stop.wait(dice.uniform(5.0, 20.0)):
        return
    seconds = dice.uniform(0.5, 8.0)
    stage.history.note("dns", f"gives random halves for {seconds:.1f} s")
    with stage.history.trouble("dns"):
        stage.world.dns.trims = True
        stage.stop.wait(seconds)
        stage.world.dns.trims = False
    stage.history.note("dns", "gives all again")


def poison(stage: Stage, dice: Dice) -> None:
    """Register an unusable instance beside the good ones of a service, and remove it later."""
    service, kind = dice.choice([STEADY, MORTAL]), dice.randrange(len(POISON))
    stage.history.note("consul", f"{service.name} has an instance at {POISON[kind]}")
    _until_done(stage, "consul", lambda: stage.world.poison(service, kind))
    stage.stop.wait(dice.uniform(0.2, 8.0))
    _until_done(stage, "consul", lambda: stage.world.cure(kind))
    stage.history.note("consul", f"{service.name} has none at {POISON[kind]} any more")
    stage.stop.wait(dice.uniform(0.2, 4.0))


def break_things(stage: Stage, dice: Dice) -> None:
    """Break something else, and repair it."""
    if not stage.stop.wait(dice.uniform(1.0, 4.0)):
        dice.choice(BREAKING)(stage, dice)


def kill_leader(stage: Stage, dice: Dice) -> None:
    """Kill the leader of Consul, and start it again later."""
    history, cluster = stage.history, stage.world.cluster
    stage.world.wait_for_leader()
    try:
        leader = cluster.leader()
    except (OSError, ValueError):
        return  # an election is under way
    with history.trouble("consul"):
        history.note("consul", f"the leader is killed: server {cluster.servers.index(leader)}")
        leader.kill()
        stage.stop.wait(dice.uniform(1.0, 5.0))
        leader.start()
        stage.world.wait_for_leader()
    history.note("consul", "three servers again")


def kill_agent(stage: Stage, dice: Dice) -> None:
    """Kill the agent of this host, and start it again later."""
    with stage.history.trouble("consul"):
        stage.history.note("consul", "the agent is killed")
        stage.world.agent.kill()
        stage.stop.wait(dice.uniform(0.0, 2.0))
        stage.world.agent.start()
        stage.world.wait_for_leader()
    stage.history.note("consul", "the agent is back")


def fill_disk(stage: Stage, dice: Dice) -> None:
    """Fill the state directory and the run-time directory."""
    stage.history.note("disk", "is full")
    filler = stage.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    stage.stop.wait(dice.uniform(1.0, 6.0))
    filler.unlink()
    stage.history.note("disk", "has room again")


def lock_disk(stage: Stage, dice: Dice) -> None:
    """Make them read-only."""
    stage.history.note("disk", "is read-only")
    _remount(stage.disk, "ro")
    stage.stop.wait(dice.uniform(1.0, 6.0))
    _remount(stage.disk, "rw")
    stage.history.note("disk", "is writable")


def _remount(disk: Path, how: str) -> None:
    # The mount is read-only, not the file system, which open files would prevent.
    subprocess.run(["mount", "-o", f"remount,bind,{how}", disk], check=True)


def lock_pins(stage: Stage, dice: Dice) -> None:
    """Start the sidecar with a read-only BPF file system."""
    stage.history.note("bpffs", "is read-only for the sidecar")
    stage.killed.read_only = True
    stage.killed.kill()
    stage.stop.wait(dice.uniform(2.0, 5.0))
    stage.killed.read_only = False
    stage.history.note("bpffs", "is writable from the next start on")


def starve(stage: Stage, dice: Dice) -> None:
    """Leave the sidecar too little memory to start, or hardly more than it has."""
    keeper, memory = stage.killed, stage.memory
    with stage.history.trouble(keeper.instance, again=0, more=3.0):
        keeper.may_end = keeper.starved = True
        if dice.random() < 0.5:
            keeper.kill()
            room = dice.randrange(8 << 20, 48 << 20)
            stage.history.note("memory", f"is short: {room >> 20} MiB to start with")
        else:
            room = memory.usage() + dice.randrange(1 << 20)
            stage.history.note("memory", f"is short: {room >> 20} MiB, which it has")
        memory.limit(room)
        stage.stop.wait(dice.uniform(2.0, 5.0))
        memory.limit(None)
        stage.history.note("memory", "is there again")
        stage.stop.wait(1.0)
    keeper.may_end = False


def jump(stage: Stage, dice: Dice) -> None:
    """Let the time of day jump, for both sidecars."""
    seconds = dice.choice([0, 3600, -3600, dice.randrange(-YEARS, YEARS)])
    stage.history.note("clock", f"is wrong by {seconds} s from now on")
    for keeper in (stage.killed, stage.kept):
        keeper.set_clock(seconds)


BREAKING: Final = (kill_leader, kill_agent, fill_disk, lock_disk, lock_pins, starve, jump)


def watch_machine(stage: Stage, _: Dice) -> None:
    """Detect that this machine is too busy for a time limit: for any, or only for the shortest."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), KEPT_NICE)
    began, history = time.monotonic_ns(), stage.history
    stage.stop.wait(0.05)
    now = time.monotonic_ns()
    late = now - began - SECOND // 20
    for what, limit in ((MACHINE, STANDS_STILL), (BUSY, IS_BUSY)):
        if late > limit:
            number = history.troubled[what].open(now - late)
            history.troubled[what].close(now + late, number)
    if late > STANDS_STILL:
        history.note("machine", f"has stood still for {late / SECOND:.1f} s")


ACTORS: Final = (
    *(churn_consul, churn_zone, kill_sidecars, break_things),
    *(die, die_in_tiers, fail, fail_checks, lie, trim, poison, watch_machine),
)
"""All of them."""
