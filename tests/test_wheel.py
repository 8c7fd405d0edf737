"""The wheel is the whole product when it is installed on a host without a compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery import __version__
from tests.support.cgroups import made_cgroup
from tests.support.contract import status_schema
from tests.support.dataplane import wipe
from tests.support.documents import DOCUMENTS, other_command_lines

ROOT: Final = Path(__file__).parent.parent
OF_DEBIAN: Final = "/usr/share/python-wheels"  # pip itself, which newer versions of pipx want to install


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"  # a copy: a build replaces compiled programs that other tests may be reading
    for part in ("clb_discovery", "bpf", "scripts"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("_bpf", "__pycache__"))
    for path in (*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "pyproject.toml"):
        shutil.copy(path, checkout)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, check=True, cwd=checkout, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Return the command, from the wheel in a fresh environment with only our dependencies."""
    venv = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(venv), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--no-compile", wheel], check=True, capture_output=True)
    # In this way an editable installation of the checkout stays invisible.
    site = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return venv / "bin" / "clb-discovery"


def run(installed: Path, *arguments: str | Path) -> str:
    """Run the command with an empty PATH, in a directory of code that it must not import."""
    trap = installed.parent.with_name("trap")
    trap.mkdir(exist_ok=True)
    for name in ("socket.py", "clb_discovery.py"):
        (trap / name).write_text("raise SystemExit('imported from the current directory')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [installed, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=trap,
        env={**environment, "PATH": "/nowhere"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_wheel_runs_its_own_code(installed: Path) -> None:
    """The command prints its version and the schema of status, and the installed package is what runs."""
    assert run(installed, "--version") == f"clb-discovery {__version__}\n"
    assert json.loads(run(installed, "status", "--schema")) == status_schema()
    where: list[str | Path] = [
        installed.with_name("python"),
        "-P",
        "-c",
        "import clb_discovery; print(clb_discovery.__file__)",
    ]
    found = subprocess.run(where, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert Path(found).is_relative_to(installed.parent.parent)


def test_pipx_installs_it_as_the_documents_say(wheel: Path, tmp_path: Path) -> None:
    """On a host with pipx the documented line installs the command; /opt and /usr/local/bin are replaced here."""
    lines = [line for document in DOCUMENTS for line in other_command_lines(document.read_text(), r"PIPX_HOME=.* pipx")]
    assert lines
    (tmp_path / "dist").symlink_to(wheel.parent)
    own = "mount -t tmpfs tmpfs /opt && mount -t tmpfs tmpfs /usr/local/bin"
    environment = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": f"{ROOT / '.cache/wheels'} {OF_DEBIAN}",
        "HOME": str(tmp_path),
    }
    for line in lines:
        result = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", f"{own}\n{line}\nclb-discovery --version"],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith(f"\nclb-discovery {__version__}\n")


def test_wheel_needs_no_compiler(installed: Path) -> None:
    """The programs are in the wheel: libbpf loads them, the self-test succeeds, and unload removes them."""
    assert os.geteuid() == 0, "loading programs needs root: run the tests through sudo"
    instance = f"test-{uuid4().hex[:8]}"
    try:
        with made_cgroup() as cgroup:
            run(installed, "load", "--loader", "object", "--instance", instance, "--cgroup", cgroup)
            assert "loaded (object)" in run(installed, "status", "--instance", instance)
            run(installed, "unload", "--instance", instance)
            assert not Path("/sys/fs/bpf/clb-discovery", instance).exists()
    finally:
        wipe(instance)
