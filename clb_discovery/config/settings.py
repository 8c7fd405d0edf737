"""What the sidecar is asked to do, and what of it a running sidecar can still change."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.config.services import read_services, vip_ranges
from clb_discovery.config.sources import open_sources
from clb_discovery.datapath import cgroup
from clb_discovery.datapath.instance import state_directory
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
    """What the command line and the configuration file ask for."""

    pins: Pins
    cgroup: Path | None
    """Whose connects are balanced; None where somebody else loads, who knows."""
    services: Sequence[Service]
    real_ranges: Sequence[Network]
    reset: bool
    """Whether TCP connections to a removed real server are closed, instead of left to end by themselves."""
    once: bool
    loader: Loader = Loader.AUTO
    metrics: tuple[str, int] | None = None
    """Address and port to serve metrics and the page on."""
    hosts_file: Path | None = None
    """Where the names of services are published."""
    state_dir: Path | None = None
    """Where the last good sets are kept over a reboot."""
    vip_ranges: Sequence[Network] = DEFAULT_RANGES
    """Where VIPs of services in a catalog have to lie, and where automatic ones come from."""
    max_services: int = MAX_SERVICES
    """Services of a catalog that are followed at most."""
    log_format: str = "auto"
    log_level: str = "info"

    def plane(self) -> Plane:
        """Return the data plane that these settings ask for; nothing is touched yet."""
        return LoadedPlane(self.pins) if self.cgroup is None else OwnPlane(self.pins, self.cgroup, self.loader)


class Configured(NamedTuple):
    """What there is to do, and who is to be asked."""

    settings: Settings
    open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]
    """Makes the source of each service, by its name; nothing is sent yet."""


def read_settings(options: argparse.Namespace) -> Configured:
    """Return what the options ask for; nothing is touched but the files that they name.

    :raises ClbError: naming the option, the value and the way out.
    """
    services = read_services(options)
    settings = Settings(
        pins=Pins(options.instance),
        cgroup=_cgroup(options),
        services=services,
        real_ranges=options.real_range,
        reset=options.on_remove == "reset",
        once=options.once,
        loader=Loader(options.loader),
        metrics=options.metrics,
        hosts_file=options.hosts_file,
        state_dir=state_directory(options.state_dir, os.environ),
        vip_ranges=vip_ranges(options),
        max_services=options.max_services,
        log_format=options.log_format,
        log_level=options.log_level,
    )
    return Configured(settings, partial(open_sources, options, services))


def _cgroup(options: argparse.Namespace) -> Path | None:
    if options.loader != Loader.NONE:
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
"""Settings that only a restart changes, and their options. `once` stands in no file, so it does not change."""


def without_restart(wanted: Settings, running: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the wanted settings as far as a running sidecar takes them, and the changed options that it does not."""
    kept = {name: getattr(running, name) for name in _FIXED}
    changed = tuple(option for name, option in _FIXED.items() if getattr(wanted, name) != kept[name])
    return replace(wanted, **kept), changed
