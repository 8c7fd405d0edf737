"""Exit codes do not depend on whether anything reads the output, and no standard stream has to be open."""

from __future__ import annotations

import os
import shlex
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


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- 2>&-"])
@pytest.mark.parametrize("command", VERDICTS)
def test_verdict_with_closed_streams(command: tuple[str, ...], closed: str, config: str) -> None:
    """Standard input and error need not be open; the output is the same as if they were."""
    line = arguments(command, config)
    expected = subprocess.run(line, check=False, stdout=subprocess.PIPE)
    result = subprocess.run(["sh", "-c", f"{shlex.join(line)} {closed}"], check=False, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (expected.returncode, expected.stdout)


@pytest.mark.parametrize("streams", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_error_that_cannot_be_printed_keeps_its_exit_code(streams: str) -> None:
    """Wrong usage is exit code 2, although its reason reaches nobody."""
    line = shlex.join([*COMMAND, "run", "--no-such-option"])
    assert subprocess.run(["sh", "-c", f"{line} {streams}"], check=False).returncode == 2


def test_error_without_a_reader_keeps_its_exit_code(unread: int) -> None:
    """The reader of standard error may have gone, too."""
    assert subprocess.run([*COMMAND, "run", "--no-such-option"], check=False, stderr=unread).returncode == 2


def test_warning_without_a_reader_stops_nothing(unread: int) -> None:
    """A command that warns goes on with its work."""
    script = "from clb_discovery.stderr import say; say('one'); say('two')"
    assert subprocess.run([sys.executable, "-c", script], check=False, stderr=unread).returncode == 0


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_nothing_else_becomes_a_standard_stream(closed: str) -> None:
    """What is opened first gets a descriptor above those, and child processes inherit them open."""
    script = (
        "import os, subprocess, sys; from clb_discovery.cli.output import open_closed_streams; open_closed_streams();"
        "print('lost', file=sys.stderr, flush=True);"
        "child = subprocess.run(['sh', '-c', ': <&0 >&1 2>&2']).returncode;"
        "sys.exit(100 * bool(child) + os.open('/', os.O_RDONLY))"
    )
    line = shlex.join([sys.executable, "-c", script])
    assert subprocess.run(["sh", "-c", f"{line} {closed}"], check=False).returncode == 3
