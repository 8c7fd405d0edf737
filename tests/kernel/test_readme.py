"""The README's first steps, as they are written: from a service in Consul to a balanced connect."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.support import namespaces
from tests.support.cgroups import run_inside
from tests.support.consul import ConsulAgent
from tests.support.pace import patient
from tests.support.process import running, wait_until
from tests.support.redis import redis_servers
from tests.support.sidecar import COMMAND

README: Final = Path(__file__).parent.parent.parent / "README.md"
OURS: Final = "sudo .venv/bin/clb-discovery "
SERVERS: Final = ("10.0.0.7", "10.0.0.8")


def first_steps() -> list[str]:
    """Return the command lines of the section, without the set-up of the checkout."""
    section = README.read_text().split("\n## Use it with your Consul\n")[1].split("\n## ")[0]
    lines = re.findall(r"^    (.+)$", section, re.MULTILINE)
    assert lines[0] == "scripts/setup run"
    return lines[1:]


def test_first_steps(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The steps report that all works, reach every server, and leave nothing behind."""
    with namespaces.by_mount() as namespace:
        namespaces.inside(namespace, partial(_walk, instance, cgroup, tmp_path))


def _walk(instance: str, cgroup: Path, directory: Path) -> None:
    """Follow the steps, with an agent and servers as in the README."""
    check, run, client, status, unload = first_steps()

    def ours(line: str, *where: str | Path) -> Sequence[str | Path]:
        """Avoid other data planes of this host: the only difference to the README."""
        assert line.startswith(OURS)
        return [*COMMAND, *shlex.split(line.removeprefix(OURS)), "--instance", instance, *where]

    def said(command: Sequence[str | Path]) -> str:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    for address in SERVERS:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    log = directory / "sidecar.log"
    with ConsulAgent(directory, http_port=8500) as consul, redis_servers(directory, *SERVERS) as servers:
        for server in servers:
            consul.register("redis", server.port, server.host)
        found = said(ours(check, "--cgroup", cgroup))
        assert "2 real servers" in found
        assert "FAIL" not in found
        with running(ours(run, "--cgroup", cgroup), log):
            wait_until(lambda: '"event": "ready"' in log.read_text(), f"the sidecar is ready (see {log})")
            answers = {run_inside(cgroup, *shlex.split(client)).stdout for _ in range(40)}
            table = said(ours(status))
        assert answers == {"PONG\n"}
        assert all(str(server) in table for server in servers)
        assert all(server.take_connections() for server in servers)  # fails by chance once in 10^11 runs
        assert run_inside(cgroup, *shlex.split(client)).stdout == "PONG\n"
        assert said(ours(unload)) == ""
        assert run_inside(cgroup, *shlex.split(client)).returncode != 0
