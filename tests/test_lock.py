"""requirements/ against pyproject.toml: what set-up installs is locked, by hash, and is what the project allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parent.parent
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Final[dict[str, list[str]]] = PROJECT["optional-dependencies"]
INSTALLED_FOR: Final = {
    "build": ("run", "build"),
    "test": ("run", "build", "test"),
    "page": ("run", "build", "test", "page"),
    "fuzz": ("run", "build", "fuzz"),
    "deb": ("run", "build", "deb"),
}
"""The locks that scripts/install-locked installs for each extra."""


def locked(name: str) -> list[Requirement]:
    """Return the requirements of one lock."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [Requirement(line.removesuffix("\\")) for line in lines if line[0] not in "# "]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_each_package_has_a_version_and_hashes_and_no_place(path: Path) -> None:
    """Each requirement is one exact version with SHA-256 hashes, and nothing names a host to fetch it from."""
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash=)", text, re.MULTILINE)
    blocks = re.split(r"\n(?=\S)", text.rstrip("\n"))[1:]
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==[\w.]+( ; [^\n]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n)?)+$", block), block
    assert len(blocks) == len(locked(path.stem))


@pytest.mark.parametrize("extra", EXTRAS)
def test_locks_hold_what_the_project_allows(extra: str) -> None:
    """Each requirement of an extra is locked, in a version that pyproject.toml allows."""
    found = [requirement for name in INSTALLED_FOR[extra] for requirement in locked(name)]
    for line in [*PROJECT["dependencies"], *EXTRAS[extra]]:
        wanted = Requirement(line)
        if wanted.name == PROJECT["name"]:
            continue  # of another extra
        pins = [pin for pin in found if pin.name == canonicalize_name(wanted.name)]
        assert pins, f"{wanted.name} is not locked: run scripts/lock.py"
        assert any(wanted.specifier.contains(str(pin.specifier)[2:]) for pin in pins), f"{wanted}: run scripts/lock.py"


def test_the_debian_package_holds_the_same_versions() -> None:
    """What the Debian package vendors are the versions that tests run with."""
    pins = {requirement.name: str(requirement.specifier) for requirement in locked("run")}
    for line in (ROOT / "contrib/debian/vendored.txt").read_text().splitlines():
        if not line.startswith("#"):
            vendored = Requirement(line)
            assert pins[vendored.name] == str(vendored.specifier)
