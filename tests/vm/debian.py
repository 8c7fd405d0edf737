"""Debian's packages of any suite, from this machine's mirror, without changes to its own apt."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.vm.errors import VmError

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SLIM: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_WEEK: Final = 7 * 86400
ISOLATED: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Prefix that runs a command so that no mount and no process outlives it."""


def is_young(path: Path) -> bool:
    """Return whether the file is recent enough not to be fetched again."""
    return path.exists() and time.time() - path.stat().st_mtime < _WEEK


def run(command: Sequence[str | Path], env: dict[str, str] | None = None, text: str | None = None) -> str:
    """Run a tool, and return its output.

    :param text: its standard input.
    :raises VmError: if it fails, with the end of its output.
    """
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, input=text or "", env={**os.environ, **(env or {})}
    )
    if result.returncode != 0:
        said = "\n".join((result.stdout + result.stderr).strip().splitlines()[-20:])
        raise VmError(f"`{' '.join(map(str, command))}` failed: {said}")
    return result.stdout


def mirror() -> str:
    """Return the Debian mirror; DEBIAN_MIRROR overrides it.

    :raises VmError: if apt knows none.
    """
    named = os.environ.get("DEBIAN_MIRROR")
    if named:
        return named
    formatted = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"
    for line in run(["apt-get", "indextargets", "--format", formatted, "Created-By: Packages"]).splitlines():
        origin, label, uri = line.split("\t")
        if (origin, label) == ("Debian", "Debian"):
            return uri
    raise VmError("apt has no Debian mirror here: name one, DEBIAN_MIRROR=http://... make test-kernels")


def bootstrap(target: Path, packages: Sequence[str], suite: str, *more_suites: str) -> None:
    """Make a small Debian with these packages; needs root.

    :param target: a directory, or an archive if the name is that of one.
    :raises VmError: if it cannot be made.
    """
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _SLIM]
    options += ['--aptopt=APT::Install-Recommends "false"', "--variant=minbase", "--quiet"]
    sources = [f"deb {mirror()} {name} main" for name in (suite, *more_suites)]
    run([*ISOLATED, "mmdebstrap", *options, f"--include={','.join(packages)}", suite, target, *sources])


class Suite:
    """The packages of one suite, with apt lists of its own in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read the lists.

        :raises VmError: if they cannot be fetched.
        """
        state, cache = folder / "state", folder / "cache"
        for directory in (state / "lists" / "partial", cache / "archives" / "partial"):
            directory.mkdir(parents=True)
        (folder / "sources").write_text(f"deb [signed-by={_KEYRING}] {mirror()} {name} main\n")
        settings = {
            "Dir::State": state,
            "Dir::State::status": "/dev/null",
            "Dir::Cache": cache,
            "Dir::Etc::SourceList": folder / "sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        (folder / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
        self._folder = folder
        self._env = {"APT_CONFIG": str(folder / "apt.conf")}
        run(["apt-get", "update"], self._env)

    def dependency(self, package: str) -> str:
        """Return the only dependency of a metapackage.

        :raises VmError: if it is not in the suite.
        """
        for line in run(["apt-cache", "depends", "--important", package], self._env).splitlines():
            if line.startswith("  Depends: "):
                return line.split()[1]
        raise VmError(f"{package} depends on nothing")

    def extract(self, package: str, target: Path) -> str:
        """Unpack a package below a directory, without installing it; return its version.

        :raises VmError: if it cannot be fetched.
        """
        command = ["sh", "-ec", 'cd "$0" && apt-get -qq download "$1"', str(self._folder), package]
        run(command, self._env)
        (archive,) = self._folder.glob(f"{package}_*.deb")
        run(["dpkg-deb", "--extract", archive, target])
        version = run(["dpkg-deb", "--field", archive, "Version"]).strip()
        archive.unlink()
        return version
