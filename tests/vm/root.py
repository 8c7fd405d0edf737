"""The root of the machines: a small Debian with what the tests use, as a read-only image."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from tests.vm.debian import bootstrap, run

SUITE: Final = "bookworm"
PYTHON: Final = "3.11"  # the suite's
MORE_SUITES: Final = ("bullseye",)  # for Consul
MORE_PACKAGES: Final = ("kmod",)  # modprobe, for what the kernel loads by itself
NOT_THERE: Final = ("clb-discovery", "mypy", "ruff")
"""Of the extra `test`, what the tests of the kernel do not need."""


def recipe(checkout: Path) -> str:
    """Return a name for what the image is made of: another name is another image."""
    parts = (*_packages(checkout), *_requirements(checkout), SUITE, *MORE_SUITES, Path(__file__).read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def make(checkout: Path, image: Path) -> None:
    """Make the image, which appears whole or not at all; needs root.

    :raises VmError: if it cannot be made.
    """
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        tree, fresh = Path(name) / "root", Path(name) / "image"
        bootstrap(tree, [*_packages(checkout), *MORE_PACKAGES], SUITE, *MORE_SUITES)
        target = tree / "opt" / "python"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*install, "--target", target, "--python-version", PYTHON, "--only-binary=:all:", *_requirements(checkout)])
        run(["chroot", tree, "python3", "-m", "compileall", "-q", "/opt/python"])
        used = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
        size = f"{used * 3 // 2 // 2**20 + 128}M"  # sparse: what is not used takes no room
        run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", tree, fresh, size])
        fresh.rename(image)


def _packages(checkout: Path) -> list[str]:
    return run([checkout / "scripts" / "setup", "list"]).split()


def _requirements(checkout: Path) -> list[str]:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    wanted: list[str] = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [requirement for requirement in wanted if not requirement.startswith(NOT_THERE)]
