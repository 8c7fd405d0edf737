"""What each command does; the command line is parsed in `cli`.

Modules that only one command needs are imported there, so that `status` does not wait for the Consul client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from clb_discovery import __version__, log
from clb_discovery.core import selftest
from clb_discovery.core.status import Datapath, document
from clb_discovery.datapath import cgroup, loader
from clb_discovery.datapath.loader import Loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.discovery import open_sources, read_services, vip_ranges
from clb_discovery.errors import HostError
from clb_discovery.hosts_file import write_names
from clb_discovery.runtime import Instance, state_directory


def run(options: argparse.Namespace) -> int:
    """Follow discovery in the foreground."""
    from clb_discovery.daemon import Configured, Daemon, Settings  # noqa: PLC0415 - see above

    def configured(options: argparse.Namespace) -> Configured:
        services = read_services(options)
        settings = Settings(
            pins=Pins(options.instance),
            cgroup=cgroup.resolve(options.cgroup),
            services=services,
            real_ranges=options.real_range,
            reset=options.on_remove == "reset",
            once=options.once,
            metrics=options.metrics,
            loader=Loader(options.loader),
            hosts_file=options.hosts_file,
            state_dir=state_directory(options.state_dir, os.environ),
            vip_ranges=vip_ranges(options),
        )
        return Configured(settings, partial(open_sources, options, services))

    log.configure(options.log_format, options.log_level)
    asyncio.run(Daemon(configured(options), lambda: configured(options.reread())).run())
    return 0


def status(options: argparse.Namespace) -> int:
    """Print what the kernel does now."""
    from clb_discovery.table import render  # noqa: PLC0415 - see above

    found = read_status(options.instance)
    _show(found, render, as_json=options.json)
    return 0


def read_status(name: str) -> dict[str, Any]:
    """Return the document of `status --json` for an instance."""
    pins, instance = Pins(name), Instance(name)
    return document(
        instance=name,
        version=__version__,
        kernel=os.uname().release,
        datapath=_read_datapath(pins),
        pid=instance.holder(),
        state=instance.read_state(),
        hidden=frozenset(selftest.virtual_servers(name)),
    )


def plan(options: argparse.Namespace) -> int:
    """Print what would change; 2 tells scripts that something would."""
    from clb_discovery.core.preview import render  # noqa: PLC0415 - see above
    from clb_discovery.planning import look_ahead  # noqa: PLC0415 - see above

    log.configure("auto", "error")
    found = look_ahead(options)
    _show(found, render, as_json=options.json)
    return 2 if found["changes"] else 0


def load(options: argparse.Namespace) -> int:
    """Load and attach the data plane."""
    pins = Pins(options.instance)
    target = cgroup.resolve(options.cgroup)
    with Instance(options.instance).held():
        loader.load(pins, target, Loader(options.loader))
        ineffective = loader.objection(pins, target)
    if ineffective:
        raise HostError(ineffective)
    return 0


def unload(options: argparse.Namespace) -> int:
    """Detach and remove the data plane."""
    pins, instance = Pins(options.instance), Instance(options.instance)
    with instance.held(), ExitStack() as afterwards:
        afterwards.callback(instance.forget)
        afterwards.callback(loader.unload, pins)
        named = instance.hosts_file()
        if named:  # first, so that no name leads to an address that nobody serves
            write_names(named, pins.instance, {})
    return 0


def trace(options: argparse.Namespace) -> int:
    """Print decisions and outcomes until interrupted."""
    from clb_discovery.trace import follow  # noqa: PLC0415 - see above

    follow(Pins(options.instance), as_json=options.json)
    return 0


def check(options: argparse.Namespace) -> int:
    """Say what works on this host."""
    from clb_discovery.check import report  # noqa: PLC0415 - see above

    return report(options)


def demo(options: argparse.Namespace) -> int:
    """Show the whole thing."""
    from clb_discovery.demo.show import show  # noqa: PLC0415 - see above

    return show(color=not options.no_color)


def _show(found: dict[str, Any], render: Callable[[dict[str, Any]], str], *, as_json: bool) -> None:
    print(json.dumps(found, indent=2) if as_json else render(found))  # noqa: T201 - this is the output


def _read_datapath(pins: Pins) -> Datapath | None:
    if not pins.have_maps():
        return None
    with Maps(pins) as maps:
        info = maps.info()
        if info is None:
            return None
        held = maps.read()
        return Datapath(info, held, maps.servers(held), loader.objection(pins, Path(info.cgroup)))
