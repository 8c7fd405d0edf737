"""Where programs of the host are: in the places of the system, whatever PATH the caller has."""

from __future__ import annotations

import os
import shutil
from typing import Final

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
"""As systemd has it (systemd.exec(5)), and where NixOS has them."""


def find(name: str) -> str:
    """Return the path of a program.

    :raises FileNotFoundError: if it is in none of these places.
    """
    found = shutil.which(name, path=PATH)
    if found is None:
        raise FileNotFoundError(f"{name} is not in {PATH}")
    return found


def environment() -> dict[str, str]:
    """Return the variables of a program that we start: ours, but for where it finds others in turn."""
    return {**os.environ, "PATH": PATH}
