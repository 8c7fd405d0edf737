"""Compile bpf/clb.bpf.c into the package: a hatchling build hook, and a script that prints the paths of the objects.

The package also contains the sources, which BCC compiles on hosts without libbpf.

An object is the same for every little-endian host, whatever its processor, because BPF is a virtual machine and the
sources use only the user API of the kernel. So the wheel has the tag py3-none-any. Big-endian hosts need another build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE: Final = Path("bpf/clb.bpf.c")
OBJECTS: Final = {
    # Linux 6.1 and later; v3 has atomics with a result, and 32-bit arithmetic (5.12)
    Path("clb_discovery/_bpf/clb.bpf.o"): (
        "-mcpu=v3",
        "-DCLB_CAN_SET_ERRNO=1",
        "-DCLB_CAN_LOOP=1",
        "-DCLB_CAN_READ_OPTIONS=1",
        "-DCLB_CAN_EXCHANGE=1",
        "-DCLB_CAN_READ_KERNEL=1",
    ),
    # the same for a kernel without BTF
    Path("clb_discovery/_bpf/clb-no-btf.bpf.o"): (
        "-mcpu=v3",
        "-DCLB_CAN_SET_ERRNO=1",
        "-DCLB_CAN_LOOP=1",
        "-DCLB_CAN_READ_OPTIONS=1",
        "-DCLB_CAN_EXCHANGE=1",
        "-DCLB_CAN_READ_KERNEL=0",
    ),
    # Linux 5.10 and later
    Path("clb_discovery/_bpf/clb-floor.bpf.o"): (
        "-mcpu=v2",
        "-DCLB_CAN_SET_ERRNO=0",
        "-DCLB_CAN_LOOP=0",
        "-DCLB_CAN_READ_OPTIONS=0",
        "-DCLB_CAN_EXCHANGE=0",
        "-DCLB_CAN_READ_KERNEL=0",
    ),
}
SOURCES: Final = Path("clb_discovery/_bpf/src")

CFLAGS: Final = (
    "-target", "bpf",
    "-O2",
    "-g",  # BTF is made from the debug information
    "-Wall", "-Wextra", "-Wundef", "-Werror",
)  # fmt: skip


class BuildError(Exception):
    """The object cannot be built here; the message is one line."""


def find_tool(name: str, package: str) -> str:
    """Return the path of `name`, or of its newest version with a suffix (clang-19) if only such are installed."""
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


def compile_bpf(root: Path) -> list[Path]:
    """Compile the programs of the checkout at `root`; return the objects, each of which is replaced atomically."""
    return [compile_object(root, root / target, macros) for target, macros in OBJECTS.items()]


def compile_object(root: Path, target: Path, macros: Sequence[str]) -> Path:
    """Compile one object with these macros."""
    clang = find_tool("clang", "clang")
    strip = find_tool("llvm-strip", "llvm")
    target.parent.mkdir(parents=True, exist_ok=True)
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""  # the directory of asm/types.h on Debian
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        include = f"/usr/include/{multiarch}"
        relocatable = f"-ffile-prefix-map={root}=."
        run([clang, *CFLAGS, *macros, "-idirafter", include, relocatable, "-c", str(root / SOURCE), "-o", str(fresh)])
        run([strip, "--strip-debug", str(fresh)])  # drops DWARF; BTF stays
        fresh.chmod(0o644)
        fresh.replace(target)
    return target


def copy_sources(root: Path) -> None:
    """Copy the sources of the checkout at `root` into the package, replacing the previous copy."""
    target = root / SOURCES
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh, old = Path(folder) / "fresh", Path(folder) / "old"
        shutil.copytree(root / SOURCE.parent, fresh, ignore=shutil.ignore_patterns("LICENSE.*"))
        if target.exists():
            target.rename(old)
        fresh.rename(target)


def run(command: list[str]) -> None:
    """Run a tool; its own messages go to stderr."""
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise BuildError(f"{Path(command[0]).name} failed with status {status} on {SOURCE}; see its messages above")


class BpfBuildHook(BuildHookInterface[BuilderConfig]):
    """Add the objects and the sources to the wheel, standard or editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Build both, and list them as artifacts, because git ignores them."""
        try:
            compile_bpf(Path(self.root))
        except BuildError as error:
            sys.exit(f"clb-discovery: {error}")
        copy_sources(Path(self.root))
        build_data["artifacts"] += [*(f"/{target}" for target in OBJECTS), f"/{SOURCES}/"]


def main() -> None:
    """Compile for this checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        print(*compile_bpf(root), sep="\n")
    except BuildError as error:
        sys.exit(f"build_bpf: {error}")
    copy_sources(root)


if __name__ == "__main__":
    main()
