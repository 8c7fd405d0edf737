#!/usr/bin/env python3
"""Resolve requirements/*.txt again: the newest versions that pyproject.toml allows, with the hashes of all their files.

One lock serves Python 3.11 and later, on every processor. uv resolves it; it is installed into .cache/lock and uses the
index that pip is configured for. No file names an index. Each file holds only what the files that it rests on lack.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET: Final = ROOT / "requirements"
BASES: Final = {
    "run": (),
    "build": ("run",),
    "test": ("run", "build"),
    "page": ("run", "build", "test"),
    "fuzz": ("run", "build"),
    "deb": ("run", "build"),
}
"""Each extra of pyproject.toml that set-up installs (run: none), and the files that are installed before its own."""

AUDIT: Final = "pip-audit>=2.7"
"""Has an environment of its own, and so a lock of its own."""

BACKENDS: Final = ("editables~=0.3", "setuptools>=77")
"""What an installation without build isolation needs beside hatchling: hatchling needs editables for an editable
project, and setuptools builds packages that are published as source only."""


def main() -> None:
    """Write all files, or none if anything cannot be resolved."""
    uv = install_uv()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inputs = {name: place / f"{name}.in" for name in (*BASES, "all", "audit")}
        for name in BASES:
            inputs[name].write_text("\n".join(requirements_of(project, name)))
        inputs["all"].write_text("\n".join(inputs[name].read_text() for name in BASES))
        inputs["audit"].write_text(AUDIT)
        constraints = place / "all.txt"
        constraints.write_text("".join(resolve(uv, inputs["all"]).values()))
        locks = {name: resolve(uv, inputs[name], constraints) for name in BASES}
        audit = resolve(uv, inputs["audit"])
    TARGET.mkdir(exist_ok=True)
    for name, bases in BASES.items():
        known = {block for base in bases for block in locks[base].values()}
        blocks = [block for block in locks[name].values() if block not in known]
        after = ", ".join(f"{base}.txt" for base in bases) or "nothing"
        write(name, f"installed after {after}", blocks)
    write("audit", "installed into an environment of its own", audit.values())


def write(name: str, note: str, blocks: Iterable[str]) -> None:
    """Write one file of locks."""
    (TARGET / f"{name}.txt").write_text(f"# Made by scripts/lock.py, {note}. Do not edit.\n" + "".join(blocks))


def install_uv() -> Path:
    """Return the path of uv, in an environment of its own."""
    place = ROOT / ".cache/lock"
    if not (place / "bin/uv").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin/pip", "install", "-qq", "--disable-pip-version-check", "uv>=0.9"], check=True)
    return place / "bin/uv"


def requirements_of(project: dict[str, dict[str, list[str]] | list[str]], extra: str) -> list[str]:
    """Return the requirements of an extra, with those of the project and of extras that it contains."""
    dependencies, extras = project["dependencies"], project["optional-dependencies"]
    assert isinstance(dependencies, list)  # noqa: S101 - for mypy
    assert isinstance(extras, dict)  # noqa: S101 - for mypy
    found = list(dependencies)
    for requirement in extras.get(extra, ()):
        if requirement.startswith("clb-discovery["):
            found += requirements_of(project, requirement.removeprefix("clb-discovery[").removesuffix("]"))
        else:
            found.append(requirement)
    return [*found, *BACKENDS] if extra == "build" else found


def resolve(uv: Path, given: Path, constraints: Path | None = None) -> dict[str, str]:
    """Return the lines of each package that `given` needs, by name; the versions of `constraints` are kept."""
    command: list[str | Path] = [uv, "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--quiet", "--no-emit-package", "pip", given]
    if constraints:
        command += ["--constraints", constraints]
    text = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env=environment(), cwd=given.parent
    ).stdout
    blocks: dict[str, str] = {}
    name = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            continue  # packages that are left out
        if not line.startswith(" "):
            name = line.split("==")[0]
        blocks[name] = blocks.get(name, "") + line
    return blocks


def environment() -> dict[str, str]:
    """Return the environment for uv, which does not read pip's configuration."""
    pip: list[str | Path] = [ROOT / ".cache/lock/bin/pip", "config", "get", "global.index-url"]
    index = subprocess.run(
        pip, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout.strip()
    return {**os.environ, **({"UV_DEFAULT_INDEX": index} if index else {})}


if __name__ == "__main__":
    main()
