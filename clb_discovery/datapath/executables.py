"""Find programs of the host in the system directories, whatever PATH the caller has."""

from __future__ import annotations

import os
import shutil
from typing import Final

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
"""The PATH of systemd (systemd.exec(5)), and the directory of NixOS."""


def find(name: str) -> str:
    """Return the path of a program.

    :raises FileNotFoundError: if it is in none of these directories.
    """
    found = shutil.which(name, path=PATH)
    if found is None:
        raise FileNotFoundError(f"{name} is not in {PATH}")
    return found


def environment() -> dict[str, str]:
    """Return the environment of a program that we start: ours, except for PATH."""
    return {**os.environ, "PATH": PATH}
