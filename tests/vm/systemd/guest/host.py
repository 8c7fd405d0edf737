"""The machine of the scenarios: its systemd, its sidecar, and the client that connects all the time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.pace import patient
from tests.support.process import wait_until
from tests.vm.systemd.guest.client import COUNTS, connect

DATAPATH: Final = "clb-discovery-datapath.service"
WRITER: Final = "clb-discovery.service"
CONFIG: Final = Path("/etc/clb-discovery.toml")
UNITS: Final = Path("/etc/systemd/system")
CONSUL_CONFIG: Final = """\
consul = "http://127.0.0.1:8500"
real-range = ["127.0.0.0/8", "::1/128"]

[[service]]
name = "web"
consul = "web"
vip = "10.64.0.1:80,[fd00:64::1]:80"
"""
SIDECAR_OF_APP: Final = "clb-discovery@app.service"
APP_CONFIG: Final = """\
real-range = ["127.0.0.0/8", "::1/128"]

[[service]]
name = "own"
vip = "10.64.0.7:80,[fd00:64::7]:80"
servers = ["127.0.0.1:7001", "[::1]:7002"]
"""
VIP4, VIP6 = "10.64.0.1", "fd00:64::1"


def run(*command: str) -> str:
    """Run a command, and return its output.

    :raises AssertionError: if it fails.
    """
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))
    assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
    return result.stdout


def systemctl(*arguments: str) -> None:
    """Run systemctl with a command, and wait for its end."""
    run("systemctl", *arguments)


def show(unit: str, name: str) -> str:
    """Return a property of a unit."""
    return run("systemctl", "show", "--value", f"--property={name}", unit).strip()


def is_active(unit: str) -> bool:
    """Return whether a unit is active."""
    return show(unit, "ActiveState") == "active"


def moment(unit: str, name: str) -> int:
    """Return the time of a unit's last event, in microseconds since the boot."""
    return int(show(unit, f"{name}TimestampMonotonic"))


def journal(unit: str) -> str:
    """Return the log of a unit in this boot, for people who look at a failure."""
    return run("journalctl", "--boot", "--no-pager", "--output=cat", f"--unit={unit}")


def has_logged(unit: str, event: str) -> bool:
    """Return whether the log of a unit in this boot has an event."""
    return f'"event": {json.dumps(event)}' in journal(unit)


def status(instance: str = "default") -> dict[str, Any]:
    """Return the document of `status --json`."""
    found: dict[str, Any] = json.loads(run("clb-discovery", "status", "--json", "--instance", instance))
    return found


def edit(unit: str, text: str) -> Path:
    """Change a unit as `systemctl edit` does, and return the file; nothing is restarted."""
    directory = UNITS / f"{unit}.d"
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "scenario.conf"
    file.write_text(text)
    systemctl("daemon-reload")
    return file


@contextmanager
def edited(unit: str, text: str) -> Iterator[None]:
    """Use a drop-in for a unit while the block runs."""
    file = edit(unit, text)
    try:
        yield
    finally:
        file.unlink()
        systemctl("daemon-reload")


@contextmanager
def config(text: str) -> Iterator[None]:
    """Use another configuration while the block runs; nothing is reloaded."""
    before = CONFIG.read_text()
    CONFIG.write_text(text)
    try:
        yield
    finally:
        CONFIG.write_text(before)


def configure_beside(application: str) -> None:
    """Write the configuration of the sidecar of one application."""
    file = Path(f"/etc/{application}.toml")
    file.write_text(APP_CONFIG)
    Path("/etc/default", f"clb-discovery@{application}").write_text(f"CLB_DISCOVERY_OPTIONS=--config {file}\n")


def wait_for_restart(unit: str, before: str) -> None:
    """Wait until a unit is active again, as another process than before."""
    wait_until(lambda: is_active(unit) and show(unit, "MainPID") != before, f"{unit} is up again", patient(20))


def answers(address: str, port: int = 80, count: int = 12) -> set[str]:
    """Connect so many times; return the names of the servers."""
    return {connect(address, port) for _ in range(count)}


class Counts(NamedTuple):
    """The counts of the client."""

    made: int
    failed: int


class Client:
    """A service that connects without pause."""

    def __init__(self, name: str) -> None:
        self.unit = f"{name}.service"
        self._directory = Path("/var/lib", name)

    @property
    def is_running(self) -> bool:
        """Whether it is connecting."""
        return is_active(self.unit)

    def counts(self) -> Counts:
        """Return the numbers of connects and of failures in all of its runs."""
        return Counts(*COUNTS.unpack((self._directory / "counts").read_bytes()))

    def failures(self) -> list[str]:
        """Return every failed connect in all of its runs."""
        file = self._directory / "failures"
        return file.read_text().splitlines() if file.exists() else []

    def goes_on(self, count: int = 50) -> None:
        """Wait until it has made so many more connects."""
        enough = self.counts().made + count
        wait_until(lambda: self.counts().made >= enough, f"{self.unit} makes {count} connects")
