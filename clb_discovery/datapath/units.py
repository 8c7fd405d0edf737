"""The cgroup of a systemd unit, before the unit is started.

systemd puts a service into a directory with its name below that of its slice, and uses an existing directory unchanged
(cg_create in its sources). systemd.slice(5) describes how slices nest.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from clb_discovery.datapath import cgroup, executables
from clb_discovery.errors import HostError, UsageError

_PATIENCE: Final = 30.0
_ESCAPED: Final = ("_", ".", "cgroup.", "cpu.", "cpuacct.", "cpuset.", "io.", "blkio.", "memory.", "pids.", "devices.")
"""Prefixes of names that could be files of a cgroup; systemd prepends an underscore then (cg_needs_escape)."""


def cgroup_of(unit: str) -> Path:
    """Return the cgroup of a unit; it is created if systemd has not created it yet.

    :param unit: with its suffix, such as `shop.service`.
    :raises UsageError: if it is not the name of a unit that has a cgroup.
    :raises HostError: if systemd gives no slice, or the cgroup cannot be created.
    """
    path = cgroup.find_root() / path_below(_slice_of(unit), unit)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make the cgroup {path} of {unit}: {error.strerror}; run as root") from error
    return path


def path_below(slice_: str, unit: str) -> Path:
    """Return the path of the cgroup of a unit below the root: `a-b.slice` is in `a.slice`, the unit in `a-b.slice`.

    :param slice_: `-.slice` is the root itself.
    """
    parts = slice_.removesuffix(".slice").split("-") if slice_ != "-.slice" else []
    slices = ["-".join(parts[: depth + 1]) + ".slice" for depth in range(len(parts))]
    return Path(*slices, f"_{unit}" if unit.startswith(_ESCAPED) else unit)


def _slice_of(unit: str) -> str:
    try:
        command = [executables.find("systemctl"), "show", "--property=Slice", "--value", "--", unit]
        asked = subprocess.run(  # noqa: S603 - no shell
            command, check=False, capture_output=True, text=True, timeout=_PATIENCE, env=executables.environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot query the slice of {unit}: {error}; give --cgroup PATH") from error
    if asked.returncode != 0:
        said = " ".join(asked.stderr.split())
        raise HostError(f"systemd does not report the slice of {unit}: {said}; give --cgroup PATH")
    found = asked.stdout.strip()
    if not found.endswith(".slice"):
        raise UsageError(f"{unit!r} is not a unit with a cgroup; give a service with its suffix, such as shop.service")
    return found
