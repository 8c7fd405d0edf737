"""Exit codes do not depend on whether anything reads the output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

COMMAND: Final = (sys.executable, "-m", "clb_discovery")
CONFIG: Final = """
[[service]]
name = "ldap"
vip = "10.64.0.3:389"
servers = ["10.0.0.3:389"]
[[service]]
name = "web"
vip = "10.64.0.4:80"
servers = ["127.0.0.1:80"]
"""
VERDICTS: Final = (("check",), ("plan",), ("plan", "--json"))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Return the path of a file with a service that fails its check, and one that would be added."""
    file = tmp_path / "clb.toml"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def unread() -> Iterator[int]:
    """Return the end of a pipe that no process reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def arguments(command: tuple[str, ...], config: str) -> list[str]:
    """Return a command line that queries nothing, and finds nothing installed."""
    return [*COMMAND, *command, "--offline", "--config", config, "--instance", "test-output"]


@pytest.mark.parametrize("command", VERDICTS)
def test_verdict_without_a_reader(command: tuple[str, ...], config: str, unread: int) -> None:
    """A script that reads only the first lines, or none, gets the same exit code, and no error."""
    line = arguments(command, config)
    expected = subprocess.run(line, check=False, capture_output=True).returncode
    result = subprocess.run(line, check=False, stdout=unread, stderr=subprocess.PIPE)
    assert expected != 0
    assert (result.returncode, result.stderr) == (expected, b"")
