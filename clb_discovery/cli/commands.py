"""What each command does; the command line is parsed in `cli.parser`.

Modules that only one command needs are imported there, so that `status` does not wait for the Consul client, and the
sidecar carries no tables.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import ExitStack

from clb_discovery import log
from clb_discovery.cli.status import print_json
from clb_discovery.datapath import cgroup, handover, seccomp, units
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.neighbours import find_overlaps, others
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import HostError
from clb_discovery.files import raise_file_limit
from clb_discovery.hosts_file.file import write_names
from clb_discovery.model.neighbours import relation


def run(options: argparse.Namespace) -> int:
    """Follow discovery in the foreground."""
    from clb_discovery.config.settings import read_settings  # noqa: PLC0415 - see above
    from clb_discovery.sidecar.daemon import Daemon  # noqa: PLC0415 - see above

    log.configure(options.log_format, options.log_level)
    raise_file_limit()
    configured = read_settings(options)
    if configured.settings.loader is Loader.NONE:
        seccomp.confine()
    asyncio.run(Daemon(configured, lambda: read_settings(options.reread())).run())
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print what would change; 2 tells scripts that something would."""
    from clb_discovery.cli.plan import plan_document  # noqa: PLC0415 - see above

    log.configure("auto", "error")
    found = plan_document(options)
    if options.json:
        print_json(found)
    else:
        from clb_discovery.terminal.plan import render  # noqa: PLC0415 - see above
        from clb_discovery.terminal.screen import show  # noqa: PLC0415 - see above

        show(render(found))
    return 2 if found["changes"] or found["names"] else 0


def load(options: argparse.Namespace) -> int:
    """Load and attach the data plane, and leave it to who writes its maps."""
    os.umask(0o022)  # the writer, and systemd's processes, look into what is made here, whatever the umask of a unit
    pins, instance = Pins(options.instance), Instance(options.instance)
    target = units.cgroup_of(options.unit) if options.unit else cgroup.resolve(options.cgroup)
    with instance.loading() as alone:
        loader.load(pins, target, Loader(options.loader), alone=alone)
        near = [one for one in others(pins) if relation(str(target), one.cgroup)]
        instance.write_loaded(cgroup.identity(target) or 0, near)
        if options.group is not None:
            handover.share(pins, options.group)
            instance.share(options.group)
        ineffective = loader.objection(pins, target)
    if ineffective:
        raise HostError(ineffective)
    for overlap in find_overlaps(pins, target):
        print(f"clb-discovery: warning: {overlap}", file=sys.stderr)  # noqa: T201 - it is loaded all the same
    return 0


def unload(options: argparse.Namespace) -> int:
    """Detach and remove the data plane."""
    pins, instance = Pins(options.instance), Instance(options.instance)
    loaded = pins.exist()
    if not loaded and not instance.exists():  # a name that was typed wrong leaves no directory behind
        _print_nothing_loaded(options.instance)
        return 0
    if options.other_layouts:
        with instance.loading():
            pins.remove_other_layouts()
        return 0
    with instance.locked(), ExitStack() as afterwards:
        afterwards.callback(instance.forget)
        afterwards.callback(loader.unload, pins)
        named = instance.hosts_file()
        if named:  # first, so that no name leads to an address that nobody serves
            with instance.as_writer():
                write_names(named, pins.instance, {})
    if not loaded:
        _print_nothing_loaded(options.instance)
    return 0


def close(_: argparse.Namespace) -> int:
    """Close sockets for a sidecar that may not."""
    from clb_discovery.datapath import closer  # noqa: PLC0415 - see above

    seccomp.confine()
    return closer.serve(sys.stdin.buffer, sys.stdout.buffer)


def trace(options: argparse.Namespace) -> int:
    """Print decisions and outcomes until interrupted."""
    from clb_discovery.cli.trace import follow  # noqa: PLC0415 - see above
    from clb_discovery.documents.trace import Wanted  # noqa: PLC0415 - see above

    wanted = Wanted(frozenset(options.service), frozenset(options.only_command), frozenset(options.outcome))
    follow(Pins(options.instance), wanted, as_json=options.json)
    return 0


def check(options: argparse.Namespace) -> int:
    """Say what works on this host."""
    from clb_discovery.cli.check import report  # noqa: PLC0415 - see above

    log.configure("auto", "error")
    return report(options)


def demo(options: argparse.Namespace) -> int:
    """Show the whole thing."""
    from clb_discovery.demo.show import show  # noqa: PLC0415 - see above

    return show(color=not options.no_color)


def _print_nothing_loaded(instance: str) -> None:
    print(f"nothing was loaded as instance {instance}")  # noqa: T201 - this is the output
