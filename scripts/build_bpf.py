"""Compile bpf/clb.bpf.c into the package: a hatchling build hook, and a script that prints where the object is.

The sources go into the package, too, for BCC to compile on hosts without libbpf.

The object is the same on every little-endian host, whatever its processor: BPF is a machine of its own and the sources
rest on the kernel's user API alone. So the wheel keeps the tag py3-none-any; build it again for a big-endian host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE: Final = Path("bpf/clb.bpf.c")
OBJECT: Final = Path("clb_discovery/_bpf/clb.bpf.o")
SOURCES: Final = Path("clb_discovery/_bpf/src")

CFLAGS: Final = (
    "-target", "bpf",
    "-mcpu=v2",  # every kernel from 5.10 on runs it
    "-O2",
    "-g",  # BTF is made from the debug information
    "-Wall", "-Wextra", "-Werror",
)  # fmt: skip


class BuildError(Exception):
    """The object cannot be built here; the message is one line for a person."""


def find_tool(name: str, package: str) -> str:
    """Return the path of `name`, or of its newest version-suffixed sibling (clang-19) where only that is installed."""
    found = shutil.which(name)
    if found is None:
        folders = [Path(folder) for folder in os.get_exec_path()]
        versions = {
            int(match[1]): str(path)
            for folder in folders
            for path in folder.glob(f"{name}-*")
            if (match := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name)) and os.access(path, os.X_OK)
        }
        if not versions:
            raise BuildError(f"{name} is not installed: it compiles {SOURCE}; install the package {package}")
        found = versions[max(versions)]
    return found


def compile_bpf(root: Path) -> Path:
    """Compile the programs of the checkout at `root`; return the object, which appears whole or not at all."""
    clang = find_tool("clang", "clang")
    strip = find_tool("llvm-strip", "llvm")
    target = root / OBJECT
    target.parent.mkdir(parents=True, exist_ok=True)
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""  # where Debian keeps asm/types.h
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / OBJECT.name
        include = f"/usr/include/{multiarch}"
        relocatable = f"-ffile-prefix-map={root}=."
        run([clang, *CFLAGS, "-idirafter", include, relocatable, "-c", str(root / SOURCE), "-o", str(fresh)])
        run([strip, "--strip-debug", str(fresh)])  # drops DWARF; BTF stays
        fresh.chmod(0o644)
        fresh.replace(target)
    return target


def copy_sources(root: Path) -> None:
    """Copy the sources of the checkout at `root`, nothing that is not there any more staying behind."""
    target = root / SOURCES
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh, old = Path(folder) / "fresh", Path(folder) / "old"
        shutil.copytree(root / SOURCE.parent, fresh, ignore=shutil.ignore_patterns("LICENSE.*"))
        if target.exists():
            target.rename(old)
        fresh.rename(target)


def run(command: list[str]) -> None:
    """Run a tool, whose own words about a failure go to stderr."""
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise BuildError(f"{Path(command[0]).name} failed with status {status} on {SOURCE}; see its messages above")


class BpfBuildHook(BuildHookInterface[BuilderConfig]):
    """Put the object and the sources into the wheel, standard or editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Make both and name them as artifacts, for git ignores them."""
        try:
            compile_bpf(Path(self.root))
        except BuildError as error:
            sys.exit(f"clb-discovery: {error}")
        copy_sources(Path(self.root))
        build_data["artifacts"] += [f"/{OBJECT}", f"/{SOURCES}/"]


def main() -> None:
    """Compile for this checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        print(compile_bpf(root))
    except BuildError as error:
        sys.exit(f"build_bpf: {error}")
    copy_sources(root)


if __name__ == "__main__":
    main()
