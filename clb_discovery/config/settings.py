"""The settings of the sidecar, and which of them a running sidecar can change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services, vip_ranges
from clb_discovery.config.sources import open_sources
from clb_discovery.datapath import cgroup
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.plane import LoadedPlane, OwnPlane, Plane
from clb_discovery.errors import UsageError
from clb_discovery.model.address import Network
from clb_discovery.model.service import MAX_SERVICES, Service
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES
from clb_discovery.sources.base import Source


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one sidecar, except those about queries."""

    pins: Pins
    cgroup: Path | None
    """The cgroup whose connects are balanced; None if another process loads the programs, which knows it."""
    services: Sequence[Service]
    real_ranges: Sequence[Network]
    reset: bool
    """Whether TCP connections to a removed real server are closed, instead of left to end on their own."""
    once: bool
    loader: Loader = Loader.AUTO
    metrics: tuple[str, int] | None = None
    """Address and port on which metrics and the page are served."""
    hosts_file: Path | None = None
    """The file in which the names of services are published."""
    state_dir: Path | None = None
    """The directory that keeps the last known good sets over a reboot."""
    vip_ranges: Sequence[Network] = DEFAULT_RANGES
    """The ranges that automatic VIPs are taken from, and in which the VIPs of a catalog have to lie."""
    max_services: int = MAX_SERVICES
    """At most so many services of a catalog are followed."""
    log_format: str = "auto"
    log_level: str = "info"

    def plane(self) -> Plane:
        """Return the data plane that fits these settings; nothing is touched yet."""
        return LoadedPlane(self.pins) if self.cgroup is None else OwnPlane(self.pins, self.cgroup, self.loader)


class Configured(NamedTuple):
    """Settings, and a factory for the sources."""

    settings: Settings
    open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]
    """Opens the source of each service, by its name; nothing is sent yet."""


def read_settings(options: Options) -> Configured:
    """Return the settings that the options describe; nothing is changed on this host.

    :raises ClbError: naming the option, the value and how to fix it.
    """
    services = read_services(options)
    settings = Settings(
        pins=Pins(options.instance),
        cgroup=_cgroup(options),
        services=services,
        real_ranges=options.real_range,
        reset=options.on_remove == "reset",
        once=options.once,
        loader=options.loader,
        metrics=options.metrics,
        hosts_file=options.hosts_file,
        state_dir=options.state_dir,
        vip_ranges=vip_ranges(options),
        max_services=options.max_services,
        log_format=options.log_format,
        log_level=options.log_level,
    )
    return Configured(settings, partial(open_sources, options, services))


def _cgroup(options: Options) -> Path | None:
    if options.loader is not Loader.NONE:
        return cgroup.resolve(options.cgroup)
    if options.cgroup is not None:
        raise UsageError("--cgroup is for who loads, so not for --loader none; use: clb-discovery load --cgroup PATH")
    return None


_FIXED: Final = {
    "pins": "instance",
    "cgroup": "cgroup",
    "loader": "loader",
    "metrics": "metrics",
    "state_dir": "state-dir",
}
"""The settings that change only at a restart, and their options. `once` cannot be in a file, so it never changes."""


def without_restart(wanted: Settings, running: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings to go on with, and the changed options that need a restart.

    :param wanted: the settings after a reload; those that need a restart are taken from `running`.
    """
    kept = {name: getattr(running, name) for name in _FIXED}
    changed = tuple(option for name, option in _FIXED.items() if getattr(wanted, name) != kept[name])
    return replace(wanted, **kept), changed
