"""The clients: several kinds, all at full rate, each a process in the cgroup of one sidecar."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from soak.judge import Client
from soak.scene import CHECKED, FRAIL, MORTAL, PORT, STEADY, TIERS, ZONE, targets
from tests.support.cgroups import inside

KINDS_IN_C: Final = ("tcp", "poll", "udp", "sendto")
NICE: Final = ("nice", "-n", "10")
"""Clients take the time that others leave, because they connect without pause."""
KILLED: Final = "soak-killed"
"""The instance whose sidecar is killed repeatedly."""
KEPT: Final = "soak-kept"
"""The instance whose sidecar runs all the time."""


def clients() -> dict[str, Client]:
    """Return the clients, by kind and number."""
    everything, living = targets(STEADY, ZONE, MORTAL, TIERS), targets(STEADY, ZONE, mapped=False)
    datagrams = targets(STEADY, ZONE, protocol="udp")
    frail, failing = targets(FRAIL), targets(FRAIL, CHECKED)
    found = {
        "tcp": ("tcp", KILLED, everything),
        "poll": ("poll", KILLED, everything),
        "blocking": ("blocking", KILLED, everything),
        "asyncio": ("asyncio", KILLED, everything),
        "curl": ("curl", KILLED, living),
        "redis-cli": ("redis-cli", KILLED, living),
        "udp": ("udp", KILLED, datagrams),
        "sendto": ("sendto", KILLED, datagrams),
        "tcp-kept": ("tcp", KEPT, targets(STEADY, ZONE, MORTAL)),
        "brief": ("brief", KILLED, failing),
        "brief-kept": ("brief", KEPT, failing),
        "waiting": ("waiting", KILLED, frail),
        "waiting-kept": ("waiting", KEPT, frail),
        "long": ("long", KILLED, frail),
        "long-kept": ("long", KEPT, frail),
    }
    return {name: Client(name, *rest) for name, rest in found.items()}


@contextmanager
def connecting(
    folder: Path, program: Path, cgroups: Mapping[str, Path]
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Let all clients connect while the block runs; then they complete their files and end.

    :param program: client.c, compiled.
    :param cgroups: by instance.
    """
    processes = {}
    with (folder / "clients.log").open("ab") as log:
        try:
            for name, client in clients().items():
                home = folder / "clients" / name
                home.mkdir(parents=True)
                start = [str(program)] if client.kind in KINDS_IN_C else [sys.executable, "-m", "soak.clients"]
                aims = [f"{target.address},{PORT}" for target in client.targets]
                command = inside(cgroups[client.instance], [*NICE, *start, client.kind, home, *aims])
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
            yield processes
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait(60)


def written(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names of clients, and their completed files, earliest first."""
    for home in sorted((folder / "clients").iterdir()):
        for file in sorted(home.glob("*.done")):
            yield home.name, file
