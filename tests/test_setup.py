"""What people see of the set-up: a line for each phase with what it installs, and nothing the second time.

apt, dpkg and pip are stubs here. `make test-fresh` runs the real ones in bare systems.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.documents import ROOT

NEEDED: Final = ("scripts", "requirements", "bpf", "pyproject.toml")
"""Files of the checkout that set-up reads."""
TOOLS: Final = (
    "bash", "cat", "cut", "dirname", "find", "flock", "grep", "mkdir", "paste", "rm", "sed", "sha256sum", "sort",
)  # fmt: skip
NOTHING: Final = "#!/bin/sh\nexit 0\n"
INSTALLED: Final = "#!/bin/sh\necho installed\n"
NOT_INSTALLED: Final = "#!/bin/sh\nexit 1\n"
COMPILES: Final = """#!/bin/sh
mkdir -p clb_discovery/_bpf/src && : >clb_discovery/_bpf/clb.bpf.o
"""


@pytest.fixture(name="checkout")
def _checkout(tmp_path: Path) -> Path:
    """Return a checkout whose .venv is there, with a pip that installs nothing."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name)
        else:
            shutil.copy(ROOT / name, checkout)
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (checkout / f".venv/lib/python{version}").mkdir(parents=True)
    (checkout / ".venv/pyvenv.cfg").write_text(f"command = {sys.executable} -m venv {checkout}/.venv\n")
    program(checkout / ".venv/bin/python", COMPILES)
    program(checkout / "scripts/install-packages", NOTHING)
    program(tmp_path / "stubs/sudo", '#!/bin/sh\nexec "$@"\n')
    for tool in TOOLS:
        found = shutil.which(tool, path="/usr/bin:/bin")
        assert found
        (tmp_path / "stubs" / tool).symlink_to(found)
    return checkout


def program(path: Path, text: str) -> None:
    """Write a program."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment with the stubs, and no other program but the tools."""
    return {**os.environ, "PATH": str(checkout.parent / "stubs")}


def set_up(checkout: Path, what: str, dpkg_query: str) -> list[str]:
    """Run set-up, and return its lines."""
    program(checkout.parent / "stubs/dpkg-query", dpkg_query)
    result = subprocess.run(
        [checkout / "scripts/setup", what],
        check=False, capture_output=True, text=True, env=environment(checkout),
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_first_set_up_shows_what_it_installs(checkout: Path) -> None:
    """Each phase is one line; packages of Debian and of Python are there by name; the last line is the time."""
    lines = set_up(checkout, "run", NOT_INSTALLED)
    assert all(line.startswith("setup: ") for line in lines)
    assert re.fullmatch(r"setup: Debian packages to install: python3 python3-venv libbpf1 .*clang.*", lines[0])
    (packages,) = (line for line in lines if "requirements/run.txt" in line)
    assert {"aiohttp", "dnspython", "structlog"} <= set(packages.split())
    assert "==" not in packages
    assert any("compiling bpf/" in line for line in lines)
    assert re.fullmatch(r"setup: done in \d+ s", lines[-1])


def test_second_set_up_is_silent(checkout: Path) -> None:
    """Nothing is printed if nothing is to be done."""
    assert set_up(checkout, "run", INSTALLED)
    assert set_up(checkout, "run", INSTALLED) == []


def test_set_up_tells_that_it_waits(checkout: Path) -> None:
    """If another set-up is at work, that is a line, too."""
    set_up(checkout, "run", INSTALLED)
    with (checkout / "pyproject.toml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with subprocess.Popen(
            [checkout / "scripts/setup", "run"], stdout=subprocess.PIPE, text=True, env=environment(checkout)
        ) as setup:
            assert setup.stdout is not None
            assert setup.stdout.readline() == "setup: waiting for another set-up of this checkout to end\n"
            held.close()
            assert setup.stdout.readline().startswith("setup: done in ")
