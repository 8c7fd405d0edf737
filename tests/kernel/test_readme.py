"""The README's first steps, as they are written: from a service in Consul to a balanced connect."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.support import namespaces
from tests.support.cgroups import run_inside
from tests.support.documents import ROOT
from tests.support.pace import patient
from tests.support.process import accepts, running, wait_until
from tests.support.redis import RedisServer
from tests.support.sidecar import COMMAND

OURS: Final = "sudo .venv/bin/clb-discovery "
HOST: Final = "127.0.0.1"
CONSUL: Final = 8500


def first_steps() -> Iterator[tuple[str, ...]]:
    """Return the blocks of command lines of the section, without comments."""
    section = (ROOT / "README.md").read_text().split("\n## Use it with your Consul\n")[1].split("\n## ")[0]
    for block in re.findall(r"(?:^    .+\n)+", section, re.MULTILINE):
        yield tuple(re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines())


def test_first_steps(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The steps report that all works, reach every server, and leave nothing behind."""
    with namespaces.by_mount() as namespace:
        namespaces.inside(namespace, partial(_walk, instance, cgroup, tmp_path))


def _walk(instance: str, cgroup: Path, directory: Path) -> None:
    """Follow the steps."""
    surroundings, (setup, check, run, client, status, unload) = first_steps()
    assert setup == "scripts/setup run"

    def ours(line: str, *where: str | Path) -> Sequence[str | Path]:
        """Avoid other data planes of this host: the only difference to the README."""
        assert line.startswith(OURS)
        return [*COMMAND, *shlex.split(line.removeprefix(OURS)), "--instance", instance, *where]

    log = directory / "sidecar.log"
    with _surrounded(directory, *surroundings) as servers:
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


@contextmanager
def _surrounded(directory: Path, *lines: str) -> Iterator[list[RedisServer]]:
    """Start the agent and the servers of the README, and register them."""
    agent, *others = (shlex.split(line) for line in lines)
    servers = [RedisServer(HOST, int(words[words.index("--port") + 1])) for words in others if "--port" in words]
    assert len(servers) == 2
    with running(agent, directory / "consul.log"):
        wait_until(partial(accepts, CONSUL, HOST), "the agent serves")
        try:
            for words in others:
                said(words, directory)
            yield servers
        finally:
            for server in servers:
                subprocess.run(["redis-cli", "-p", str(server.port), "shutdown", "nosave"], check=False)


def said(command: Sequence[str | Path], directory: Path | None = None) -> str:
    """Return what a command prints that succeeds and has no complaint."""
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60), cwd=directory)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    return result.stdout
