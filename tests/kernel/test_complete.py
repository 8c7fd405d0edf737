"""The words that shells offer: instances and services as they are loaded, and none with a meaning to a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.support.plane import Plane, loaded_plane, virtual_server
from tests.support.sidecar import COMMAND, clb
from tests.support.spares import Spares

NOBODY: Final = (sys.executable, "-m", "tests.programs.as_nobody")


@pytest.fixture
def plane(spares: Spares) -> Iterator[Plane]:
    """Load the data plane."""
    with loaded_plane(spares) as loaded:
        yield loaded


def words(kind: str) -> list[str]:
    """Return the words of this kind."""
    result = clb("complete", kind)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_bash_offers_services_and_runs_none(plane: Plane, tmp_path: Path) -> None:
    """Services of every instance are offered. A name that a shell would expand is not, and does nothing in bash."""
    trap = tmp_path / "trap"
    names = [
        "redis-probe",
        "db_2.shop",
        f"$(touch {trap})",
        f"`touch {trap}`",
        f"a;touch {trap}",
        "a b",
        "*",
        "-n",
        "é",
    ]
    plane.publish(*(replace(virtual_server(f"10.64.0.{n}:80", []), service=name) for n, name in enumerate(names, 1)))
    assert {*names} & {*words("services")} == {"redis-probe", "db_2.shop"}
    # The line is that of shtab's `cmd`.
    script = f'compgen -W "$({shlex.join(map(str, COMMAND))} complete services)" -- "$1"'
    offered = subprocess.run(["bash", "-c", script, "bash", "redis-"], check=True, capture_output=True, text=True)
    assert "redis-probe" in offered.stdout.splitlines()
    assert not trap.exists()


def test_instances_are_offered(plane: Plane) -> None:
    """Loaded instances are offered, to root."""
    assert plane.instance in words("instances")


@pytest.mark.parametrize("kind", ["instances", "services"])
def test_ordinary_user_is_offered_nothing(plane: Plane, kind: str) -> None:
    """A user that may not look gets no words and no error."""
    assert plane.instance in words("instances")
    result = subprocess.run([*NOBODY, "complete", kind], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
