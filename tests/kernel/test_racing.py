"""Clients that race several servers, and give up the slower ones, eject nobody that answers in time."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from clb_discovery.documents.trace import Kind
from clb_discovery.layout.elements import Server
from clb_discovery.model.servers import PassiveHealth
from tests.support import namespaces
from tests.support.cgroups import run_inside
from tests.support.distance import distance
from tests.support.greeters import greeting
from tests.support.heard import heard
from tests.support.pace import effort
from tests.support.plane import HOST, VIP4, VIP6, Plane, target_of, virtual_server
from tests.support.sockets import names

TIMES: Final = effort(100, 20)
AT_ONCE: Final = 10
NEAR: Final = 0.06
"""Seconds of a round trip that is well below the default of `--silent-after`, 0.2."""
FAR: Final = 0.4
"""One beyond it."""
DEFAULT: Final = PassiveHealth()
PATIENT: Final = PassiveHealth(silent_after_ms=2_000)


class Client(NamedTuple):
    """A client of both VIPs."""

    command: tuple[str | Path, ...]
    gives_up: bool = False
    """Whether it gives up servers that are as far away as `NEAR`."""


def curl(*options: str) -> tuple[str, ...]:
    """Return the command for curl, which connects to the IPv6 address first."""
    (four, port), (six, _) = target_of(VIP4), target_of(VIP6)
    one = f"curl --silent --fail --resolve server:{port}:[{six}],{four} {' '.join(options)} http://server:{port}/"
    return "sh", "-c", f"seq {TIMES} | xargs --max-procs={AT_ONCE} --replace {one}"


def racer(delay: float, *vips: str) -> tuple[str | Path, ...]:
    """Return the command for a client that begins the next connect after so many seconds."""
    targets = names([target_of(vip) for vip in vips])
    return sys.executable, "-m", "tests.programs.racer", str(delay), str(TIMES), str(AT_ONCE), *targets


def psql() -> tuple[str, ...]:
    """Return the command for libpq with two hosts, of which it takes the next if one fails."""
    (six, port), (four, _) = target_of(VIP6), target_of(VIP4)
    settings = f"host={six},{four} port={port} user=a dbname=a connect_timeout=2 sslmode=disable gssencmode=disable"
    return "sh", "-c", f"seq {TIMES} | xargs --max-procs={AT_ONCE} --replace psql --no-psqlrc '{settings}' --command ''"


def node(patience: float) -> tuple[str, ...]:
    """Return the command for Node, which gives an address up after so many seconds, before it tries the next."""
    (six, port), (four, _) = target_of(VIP6), target_of(VIP4)
    found = f"[{{address: '{six}', family: 6}}, {{address: '{four}', family: 4}}]"
    options = (
        f"{{host: 'server', port: {port}, autoSelectFamily: true, "
        f"autoSelectFamilyAttemptTimeout: {1000 * patience:.0f}, "
        f"lookup: (_, __, done) => done(null, {found})}}"
    )
    connect = (
        f"const dial = left => left && require('net').connect({options}, function() {{this.end(); dial(left - 1)}})"
    )
    return "node", "--eval", f"{connect}; for (let i = 0; i < {AT_ONCE}; i++) dial({TIMES // AT_ONCE})"


CLIENTS: Final = [
    pytest.param(Client(curl()), id="curl"),
    pytest.param(Client(curl("--happy-eyeballs-timeout-ms", "20"), gives_up=True), id="curl, in a hurry"),
    pytest.param(Client(racer(0.3, VIP6, VIP4)), id="Go's dialer"),
    pytest.param(Client(racer(0.25, VIP4, VIP6)), id="gRPC"),
    pytest.param(Client(racer(0.02, VIP4, VIP4, VIP4), gives_up=True), id="hedged connects"),
    pytest.param(Client(node(0.25)), id="Node", marks=pytest.mark.clients),
    pytest.param(Client(node(0.02), gives_up=True), id="Node, in a hurry", marks=pytest.mark.clients),
    pytest.param(Client(psql()), id="PostgreSQL", marks=pytest.mark.clients),
]


def listening(host: str) -> socket.socket:
    """Listen on a host, at a free port."""
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=4096)


@contextmanager
def pools(plane: Plane, round_trip: float, health: PassiveHealth) -> Iterator[set[str]]:
    """Publish two near and two distant servers for each VIP; return the names of the distant ones."""
    with ExitStack() as stack:
        away = stack.enter_context(distance(round_trip, 2))
        virtual, listeners, far = [], list[socket.socket](), set[str]()
        for vip, hosts in ((VIP4, away.hosts), (VIP6, away.hosts6)):
            distant = [namespaces.inside(away.namespace, partial(listening, host)) for host in hosts]
            near = [listening(HOST[vip]) for _ in hosts]
            pool = names([sock.getsockname()[:2] for sock in (*near, *distant)])
            virtual.append(virtual_server(vip, pool, health=health))
            listeners += [*near, *distant]
            far.update(pool[len(near) :])
        stack.enter_context(greeting(*listeners))
        plane.publish(*virtual)
        yield far


def counted(plane: Plane) -> dict[str, Server]:
    """Return what is counted for each server."""
    return plane.servers(VIP4) | plane.servers(VIP6)


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_that_race_eject_no_server_that_answers_in_time(plane: Plane, client: Client) -> None:
    """With defaults, servers below the time of silence lose races and stay in service."""
    with pools(plane, NEAR, DEFAULT) as far, heard(plane, 80) as kinds:
        result = run_inside(plane.cgroup, *client.command)
        assert result.returncode == 0, result.stderr
        found = counted(plane)
    assert sum(found[name].connects for name in far) > TIMES / 4
    assert kinds[Kind.GIVEN_UP, 0] or not client.gives_up
    assert sum(server.times_ejected for server in found.values()) == 0


@pytest.mark.parametrize(("health", "ejects"), [(DEFAULT, True), (PATIENT, False)], ids=["default", "raised"])
def test_losers_beyond_the_time_of_silence_are_failures(plane: Plane, health: PassiveHealth, ejects: bool) -> None:
    """Servers that are further away than `--silent-after` are ejected by clients that begin a race so late."""
    with pools(plane, FAR, health) as far:
        result = run_inside(plane.cgroup, *racer(0.3, VIP6, VIP4))
        assert result.returncode == 0, result.stderr
        found = counted(plane)
    assert bool(sum(found[name].silent for name in far)) == ejects
    assert bool(sum(found[name].times_ejected for name in far)) == ejects
