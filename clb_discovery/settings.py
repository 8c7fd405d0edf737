"""What the sidecar is asked to do, and what of it a running sidecar can still change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.core.address import Network
from clb_discovery.core.model import Service
from clb_discovery.datapath.loader import Loader
from clb_discovery.datapath.pins import Pins
from clb_discovery.sources.base import Source


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the configuration file ask for."""

    pins: Pins
    cgroup: Path
    services: Sequence[Service]
    real_ranges: Sequence[Network]
    reset: bool
    """Whether TCP connections to a removed real server are closed, instead of left to end by themselves."""
    once: bool
    loader: Loader = Loader.AUTO
    metrics: tuple[str, int] | None = None
    """Address and port to serve metrics on."""
    hosts_file: Path | None = None
    """Where the names of services are published."""
    state_dir: Path | None = None
    """Where the last good sets are kept over a reboot."""
    log_format: str = "auto"
    log_level: str = "info"


class Configured(NamedTuple):
    """What there is to do, and who is to be asked."""

    settings: Settings
    open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]
    """Makes the source of each service, by its name; nothing is sent yet."""


_FIXED: Final = {
    "pins": "instance",
    "cgroup": "cgroup",
    "loader": "loader",
    "metrics": "metrics",
    "state_dir": "state-dir",
    "once": "once",
}
"""Settings that only a restart changes, and their options."""


def without_restart(wanted: Settings, running: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the wanted settings as far as a running sidecar takes them, and the changed options that it does not."""
    kept = {name: getattr(running, name) for name in _FIXED}
    changed = tuple(option for name, option in _FIXED.items() if getattr(wanted, name) != kept[name])
    return replace(wanted, **kept), changed
