"""Commands that messages name as the way out: those of the instance in question, ready to be typed."""

from __future__ import annotations

import re
from typing import Final

_PROGRAM: Final = "clb-discovery"
_DEFAULT: Final = "default"
_PLAIN: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def load_command(instance: str, cgroup: object = None) -> str:
    """Return what loads an instance; without its name or cgroup another one would be attached, or at another place.

    :param cgroup: its path, where that is known.
    """
    return _command("load", instance) + (f" --cgroup {_quoted(str(cgroup))}" if cgroup else "")


def unload_command(instance: str) -> str:
    """Return what unloads an instance."""
    return _command("unload", instance)


def _command(name: str, instance: str) -> str:
    return f"{_PROGRAM} {name}" + (f" --instance {instance}" if instance != _DEFAULT else "")


def _quoted(text: str) -> str:
    """Return text as a shell takes it: names of systemd's slices may have a backslash."""
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"
