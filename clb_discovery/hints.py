"""Commands that messages name as the fix: for the affected instance, ready to be typed."""

from __future__ import annotations

import shlex
from typing import Final

_DEFAULT: Final = "default"


def load_command(instance: str, cgroup: object = None) -> str:
    """Return the command that loads an instance, with its name and its cgroup, if that is known."""
    # Names of systemd's slices may have a backslash.
    return _command("load", instance) + (f" --cgroup {shlex.quote(str(cgroup))}" if cgroup else "")


def unload_command(instance: str) -> str:
    """Return the command that unloads an instance."""
    return _command("unload", instance)


def _command(name: str, instance: str) -> str:
    return f"clb-discovery {name}" + (f" --instance {instance}" if instance != _DEFAULT else "")
