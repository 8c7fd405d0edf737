"""Data planes of ours in the states that a connection's cost depends on, and what is measured in each.

Each state has an instance and a cgroup of its own. Its sidecar publishes one virtual server, and has ended before
anything is measured: the data plane is what it leaves behind.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.ways import REAL, VIP
from clb_discovery.datapath.pins import Pins
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe
from tests.support.sidecar import sidecar

DIRECT: Final = "direct"
AGAIN: Final = "direct again"
LEAN: Final = "lean"
SHIPPED: Final = "as shipped"
LEAST_CONN: Final = "least-conn"
LEAST_CONN_BUSY: Final = "least-conn, all servers busy"
LEAN_ELSEWHERE: Final = "elsewhere, lean"
SHIPPED_ELSEWHERE: Final = "elsewhere, as shipped"


class State(NamedTuple):
    """The service of a data plane."""

    instance: str
    options: tuple[str, ...]
    servers: int = len(REAL)
    rows: tuple[tuple[str, str], ...] = ()
    """What is measured: names, and the addresses that the client connects to."""
    busy: str = ""
    """The name under which connects to the VIP are measured while every server has connections, if they are."""


STATES: Final = (
    State(
        "bench-lean",
        ("--eject-after", "0", "--no-active", "--connect-timeout", "off"),
        rows=((LEAN, VIP), (LEAN_ELSEWHERE, REAL[0])),
    ),
    State("bench-shipped", (), rows=((SHIPPED, VIP), (SHIPPED_ELSEWHERE, REAL[0]))),
    State(
        "bench-least-conn", ("--algorithm", "least-conn"), servers=8, rows=((LEAST_CONN, VIP),), busy=LEAST_CONN_BUSY
    ),
)


class Plane(NamedTuple):
    """A data plane."""

    state: State
    cgroup: Path
    pins: Pins


def serve_itself() -> None:
    """Let this host have the addresses of the real servers, so that a client connects to itself."""
    subprocess.run(["ip", "route", "add", "local", "10.1.0.0/24", "dev", "lo"], check=True)


def configured(state: State, port: int, folder: Path) -> list[str]:
    """Write the configuration of a sidecar; return its options."""
    config = folder / f"{state.instance}.toml"
    servers = ", ".join(f'"{address}:{port}"' for address in REAL[: state.servers])
    config.write_text(f'[[service]]\nname = "bench"\nvip = "{VIP}:{port}"\nservers = [{servers}]\n', encoding="utf-8")
    return ["--config", str(config), *state.options]


@contextmanager
def plane(state: State, port: int, folder: Path) -> Iterator[Plane]:
    """Set up a data plane while the block runs.

    :param port: of the VIP and of all real servers.
    :param folder: for configuration and log.
    """
    with ExitStack() as stack:
        cgroup = stack.enter_context(made_cgroup())
        stack.callback(wipe, state.instance)
        with sidecar(state.instance, cgroup, folder, configured(state, port, folder)):
            pass
        yield Plane(state, cgroup, Pins(state.instance))
