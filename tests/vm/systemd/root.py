"""The disk of a machine: a small Debian with systemd, the package, and the programs of the scenarios."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.documents import FRONT
from tests.vm.debian import ISOLATED, bootstrap, is_young, run

PACKAGES: Final = ("systemd", "kmod", "procps", "python3-pytest", "consul", "jq")
"""Packages for the scenarios beside the dependencies of our package."""
MORE_SUITES: Final = ("bullseye",)  # for Consul
SERVICES: Final = ("servers", "client", "shop", "scenarios")
GUEST: Final = Path("tests/vm/systemd/guest")
ROOM: Final = 512 * 2**20  # for writes in the machine
_FILES: Final = {
    # The only devices are disk and console, and there are no logins.
    "etc/fstab": "",
    "etc/hostname": "guest\n",
    "etc/default/clb-discovery": "CLB_DISCOVERY_OPTIONS=--config /etc/clb-discovery.toml\n",
    # An emulated machine is slow.
    "etc/systemd/system.conf.d/slow.conf": "[Manager]\nDefaultTimeoutStartSec=10min\nDefaultTimeoutStopSec=5min\n",
    "etc/systemd/journald.conf.d/all.conf": "[Journal]\nRateLimitIntervalSec=0\nStorage=persistent\n",
}
_MASKED: Final = ("getty.target", "e2scrub_reap", "apt-daily.timer", "apt-daily-upgrade.timer", "consul")


class Packages(NamedTuple):
    """Two versions of the package."""

    installed: Path
    later: Path
    """Replaces the installed one in the machine."""


def make(checkout: Path, suite: str, packages: Packages, cache: Path, disk: Path) -> None:
    """Make the disk; needs root.

    :param cache: where a Debian without the package is kept for a week.
    :raises VmError: if it cannot be made.
    """
    base = _base(suite, packages.installed, cache)
    with tempfile.TemporaryDirectory(dir=disk.parent) as name:
        tree = Path(name)
        run(["tar", "--extract", "--numeric-owner", f"--file={base}", f"--directory={tree}"])
        shutil.copy(packages.installed, tree / "installed.deb")
        shutil.copy(packages.later, tree / "later.deb")
        run([*ISOLATED, "chroot", tree, "dpkg", "--install", "/installed.deb"])
        for folder in ("tests", "docs", "contrib"):
            shutil.copytree(checkout / folder, tree / "checkout" / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in FRONT:
            shutil.copy(checkout / file, tree / "checkout")
        _furnish(checkout, tree)
        used = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
        run(["mkfs.ext4", "-q", "-d", tree, disk, f"{(used * 3 // 2 + ROOM) // 2**20}M"])


def _furnish(checkout: Path, tree: Path) -> None:
    for path, text in _FILES.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    shutil.copy(checkout / GUEST / "clb-discovery.toml", tree / "etc")
    for unit in (checkout / GUEST / "units").iterdir():
        shutil.copy(unit, tree / "etc/systemd/system")
    run(["systemctl", f"--root={tree}", "enable", "clb-discovery", *SERVICES])
    run(["systemctl", f"--root={tree}", "mask", *_MASKED])


def _base(suite: str, package: Path, cache: Path) -> Path:
    depends = run(["dpkg-deb", "--field", package, "Depends"])
    packages = sorted({*PACKAGES, *re.findall(r"(?:^|, )([a-z0-9.+-]+)", depends)})
    recipe = hashlib.sha256("\n".join([*packages, *MORE_SUITES]).encode()).hexdigest()[:16]
    base = cache / f"{suite}-{recipe}.tar"
    if not is_young(base):
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f"{suite}-*.tar"):
            old.unlink()
        fresh = cache / f"{suite}.tar"
        bootstrap(fresh, packages, suite, *MORE_SUITES)
        fresh.rename(base)
    return base
