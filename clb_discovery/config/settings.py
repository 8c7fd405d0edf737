"""The settings of the sidecar, and which of them a running sidecar can change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.config.sources import open_sources
from clb_discovery.datapath import cgroup
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.loading.sizes import sizes
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.plane import LoadedPlane, OwnPlane, Plane
from clb_discovery.model.service import Service
from clb_discovery.sources.base import Source


class Settings(NamedTuple):
    """The settings of one sidecar."""

    options: Options
    services: Sequence[Service]
    open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]
    """Opens the source of each service, by its name; nothing is sent yet."""

    def plane(self) -> Plane:
        """Return the data plane that fits these settings; nothing is touched yet.

        :raises HostError: if the sidecar loads the programs, and there is no such cgroup.
        """
        options, pins = self.options, Pins(self.options.instance)
        if options.loader is Loader.NONE:
            return LoadedPlane(pins)
        room = sizes(options.room_servers, options.room_sockets)
        return OwnPlane(pins, cgroup.resolve(options.cgroup), options.loader, room)


def read_settings(options: Options) -> Settings:
    """Return the settings that the options describe; raises UsageError with the option, the value and how to fix it.

    They depend on the options alone: a reload must not fail because this host lacks something that only a start needs.
    """
    services = read_services(options)
    Pins(options.instance)  # checks the name
    return Settings(options, services, partial(open_sources, options, services))


def ineffective(options: Options) -> Iterator[tuple[str, str]]:
    """Yield each given option that changes no pool, with the reason and a hint."""
    if options.near is not None:
        hint = "remove it, or put the real servers to be preferred into a part with a lower priority"
        yield "--near", f"Consul sorts its answers by it, and shares of connects do not depend on the order; {hint}"


_FIXED: Final = ("instance", "cgroup", "loader", "room_servers", "room_sockets", "metrics", "state_dir")
"""Options that change only at a restart. `once` cannot be in a file, so it never changes."""


def without_restart(wanted: Settings, running: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the wanted settings, except those that need a restart, and the names of these if they have changed."""
    kept = {name: getattr(running.options, name) for name in _FIXED}
    changed = (name.replace("_", "-") for name, value in kept.items() if getattr(wanted.options, name) != value)
    return wanted._replace(options=replace(wanted.options, **kept)), tuple(changed)
