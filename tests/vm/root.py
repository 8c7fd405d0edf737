"""The root of the machines: a small Debian with the programs that they use, as a read-only image."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.vm.debian import bootstrap, is_young, run

SUITE: Final = "bookworm"
PYTHON: Final = "3.11"  # that of the suite
MORE_SUITES: Final = ("bullseye",)  # for Consul
MORE_PACKAGES: Final = ("kmod",)  # modprobe, for modules that the kernel loads by itself
NOT_THERE: Final = ("mypy==", "ruff==")
"""Large packages of the extra `test` that the tests of the kernel do not need."""


class Recipe(NamedTuple):
    """The contents of a root."""

    packages: tuple[str, ...]
    """Packages of Debian."""
    requirements: tuple[str, ...]
    """Packages of Python, in /opt/python: each an exact version with its hashes."""
    more_suites: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name for the image: other contents have another name."""
        parts = (*self.packages, *self.requirements, SUITE, *self.more_suites, Path(__file__).read_text())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def of_tests(checkout: Path) -> Recipe:
    """Return the recipe for the tests of the kernel."""
    packages = run([checkout / "scripts" / "setup", "list"]).split()
    wanted = requirements(checkout, "run", "build", "test")
    needed = tuple(requirement for requirement in wanted if not requirement.startswith(NOT_THERE))
    return Recipe((*packages, *MORE_PACKAGES), needed, MORE_SUITES)


def requirements(checkout: Path, *names: str) -> Iterator[str]:
    """Return the packages that these files of requirements/ lock, each with its hashes.

    Markers are left out, because pip applies them to the Python that runs it, which may not be that of the image.
    """
    for name in names:
        text = (checkout / "requirements" / f"{name}.txt").read_text()
        for block in re.findall(r"^\w.*\n(?: .*\n)+", text, re.MULTILINE):
            yield re.sub(r" ;.*", " \\\\", block)


def cached(recipe: Recipe, cache: Path, say: Callable[[str], None]) -> Path:
    """Return the image, made again if its recipe has changed or it is a week old; needs root.

    :param say: prints a line for people.
    :raises VmError: if it cannot be made.
    """
    image = cache / f"root-{recipe.name}.img"
    if not is_young(image):
        say("making the root of the machines")
        for old in cache.glob("root-*.img"):
            old.unlink()
        make(recipe, image)
    return image


def make(recipe: Recipe, image: Path) -> None:
    """Make the image, which appears whole or not at all; needs root.

    :raises VmError: if it cannot be made.
    """
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        tree, fresh = Path(name) / "root", Path(name) / "image"
        bootstrap(tree, recipe.packages, SUITE, *recipe.more_suites)
        target = tree / "opt" / "python"
        locked = Path(name) / "requirements.txt"
        locked.write_text("".join(recipe.requirements))
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        place: list[str | Path] = ["--target", target, "--python-version", PYTHON, "--only-binary=:all:"]
        run([*install, *place, "--require-hashes", "--requirement", locked])
        run(["chroot", tree, "python3", "-m", "compileall", "-q", "/opt/python"])
        used = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
        size = f"{used * 3 // 2 // 2**20 + 128}M"  # sparse: unused space takes no room
        run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", tree, fresh, size])
        fresh.rename(image)
