"""Debian's kernels: which ones are tested, the features that they lack, and their parts."""

from __future__ import annotations

import lzma
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.vm.debian import Suite, is_young, run


class Kernel(NamedTuple):
    """One column of the table."""

    name: str
    suite: str
    lacks: frozenset[str] = frozenset()
    """Names of the features that it has to lack; it has to have all others."""


KERNELS: Final = (
    Kernel(
        "5.10",
        "bullseye",
        frozenset(
            {
                "errno of an empty pool",
                "options of sockets",
                "records of UDP sockets",
                "sockets of multipath TCP",
                "maps are written without CAP_BPF",
                "memory is counted by cgroup",
            }
        ),
    ),
    Kernel("6.1", "bookworm"),
    Kernel("6.12", "trixie"),
)
MODULES: Final = ("virtio_pci", "virtio_blk", "ext4", "overlay", "tun", "veth", "tcp_diag", "udp_diag", "unix_diag")
"""Modules in Debian's kernels that the machine or the tests need; dependencies are added."""
_CHOICE: Final = "choice"


class Parts(NamedTuple):
    """The parts of a kernel for a machine, unpacked in one directory."""

    folder: Path

    @property
    def image(self) -> Path:
        """The kernel itself."""
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The directory that becomes /lib/modules."""
        return self.folder / "lib" / "modules"

    @property
    def busybox(self) -> Path:
        """A static busybox of the same suite."""
        return self.folder / "busybox"

    @property
    def version(self) -> str:
        """The version of Debian's package."""
        return (self.folder / "version").read_text()

    def are_fresh(self, modules: Sequence[str]) -> bool:
        """Return whether the parts exist, are recent, and belong to these modules."""
        choice = self.folder / _CHOICE
        return is_young(choice) and choice.read_text() == " ".join(modules)


def cached(kernel: Kernel, cache: Path, say: Callable[[str], None], modules: Sequence[str] = MODULES) -> Parts:
    """Return the parts of a kernel, fetched again if they are a week old or of other modules.

    :param say: prints a line for people.
    :raises VmError: if they cannot be fetched.
    """
    parts = Parts(cache / kernel.name)
    if not parts.are_fresh(modules):
        say(f"{kernel.name}: fetching it from Debian's {kernel.suite}")
        fetch(kernel, parts.folder, modules)
    return parts


def fetch(kernel: Kernel, folder: Path, modules: Sequence[str]) -> Parts:
    """Get the parts of a kernel into a directory, which appears whole or not at all.

    :param modules: without their dependencies, which are added.
    :raises VmError: if they cannot be fetched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work, fresh = Path(name), Path(name) / "fresh"
        fresh.mkdir()
        suite = Suite(kernel.suite, work / "apt")
        version = suite.extract(suite.dependency("linux-image-amd64"), work / "package")
        suite.extract("busybox-static", work / "package")
        (fresh / "version").write_text(version)
        (fresh / _CHOICE).write_text(" ".join(modules))
        for pattern, target in (("boot/vmlinuz-*", "vmlinuz"), ("**/bin/busybox", "busybox")):
            (found,) = (work / "package").glob(pattern)
            shutil.move(found, fresh / target)
        (tree,) = (work / "package").glob("**/lib/modules/*")
        _choose_modules(tree, modules, fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return Parts(folder)


def _choose_modules(tree: Path, modules: Sequence[str], target: Path) -> None:
    """Copy the modules with all dependencies, uncompressed, because busybox and old kernels cannot decompress them."""
    base, release = tree.parents[2], tree.name
    run(["depmod", "--basedir", base, release])
    command: list[str | Path] = [
        "modprobe",
        "--dirname",
        base,
        "--set-version",
        release,
        "--show-depends",
        "--all",
        *modules,
    ]
    chosen = {Path(line.split()[1]) for line in run(command).splitlines() if line.startswith("insmod ")}
    copy = target / "lib" / "modules" / release
    for module in sorted(chosen):
        place = copy / module.relative_to(tree)
        place.parent.mkdir(parents=True, exist_ok=True)
        if module.suffix == ".xz":
            place.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        else:
            shutil.copy(module, place)
    for index in tree.glob("modules.*"):
        if index.name.startswith(("modules.builtin", "modules.order")):
            shutil.copy(index, copy)
    run(["depmod", "--basedir", target, release])
