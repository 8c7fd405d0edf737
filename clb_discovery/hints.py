"""Commands that messages name as the fix: for the affected instance, ready to be typed."""

from __future__ import annotations

import re
from typing import Final

_PROGRAM: Final = "clb-discovery"
_DEFAULT: Final = "default"
_PLAIN: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def load_command(instance: str, cgroup: object = None) -> str:
    """Return the command that loads an instance, with its name and its cgroup.

    :param cgroup: its path, if known.
    """
    return _command("load", instance) + (f" --cgroup {_quoted(str(cgroup))}" if cgroup else "")


def unload_command(instance: str) -> str:
    """Return the command that unloads an instance."""
    return _command("unload", instance)


def _command(name: str, instance: str) -> str:
    return f"{_PROGRAM} {name}" + (f" --instance {instance}" if instance != _DEFAULT else "")


def _quoted(text: str) -> str:
    """Quote a text for a shell: names of systemd slices may contain a backslash."""
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"
