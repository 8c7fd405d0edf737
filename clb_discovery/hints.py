"""Commands and names that messages give as the fix, ready to be typed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

_DEFAULT: Final = "default"
_NAMED: Final = 10  # at most so many instances in one message
AS_WRITER: Final = "run as root, or as a member of the group of: clb-discovery load --group GROUP"
"""The fix for a user that is not allowed to write the maps of an instance."""


def load_command(instance: str, cgroup: object = None) -> str:
    """Return the command that loads an instance, with its name and its cgroup, if that is known."""
    # Names of systemd's slices may have a backslash.
    return _command("load", instance) + (f" --cgroup {shlex.quote(str(cgroup))}" if cgroup else "")


def outcomes_command(instance: str, cgroup: object) -> str:
    """Return the commands that let a loaded instance follow outcomes, now and after the next boot."""
    return f"{load_command(instance, cgroup)} --outcomes on, and remove --outcomes off from CLB_DISCOVERY_LOAD_OPTIONS"


def unload_command(instance: str) -> str:
    """Return the command that unloads an instance."""
    return _command("unload", instance)


def unload_others_command(instance: str) -> str:
    """Return the command that removes the programs of other layouts of an instance."""
    return f"{unload_command(instance)} --other-layouts"


def only_other_layouts(instance: str, layouts: Sequence[str], *, loaded: bool) -> str:
    """Return why programs of other layouts, such as `v2`, are not removed, and what has to be done first.

    :param loaded: whether the programs of this version are loaded, without any pool.
    """
    stay = f"the programs of layout {', '.join(layouts)} stay; start the sidecar"
    if loaded:
        return f"no pool of this version is published, so {stay}"
    return f"nothing of this version is loaded, so {stay}, or run: {load_command(instance)}"


def loaded_instances(names: Sequence[str]) -> str:
    """Return the answer to the name of an instance that is not loaded: those that are."""
    if not names:
        return "no instance is loaded on this host"
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"loaded on this host: {', '.join(names[:_NAMED])}{more}"


def _command(name: str, instance: str) -> str:
    return f"clb-discovery {name}" + (f" --instance {instance}" if instance != _DEFAULT else "")
