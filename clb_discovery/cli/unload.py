"""`unload`: detach and remove the data plane."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.pins import Pins, instance_names
from clb_discovery.errors import HostError
from clb_discovery.hints import loaded_instances, only_other_layouts
from clb_discovery.hosts_file.file import write_names


def main(typed: argparse.Namespace) -> int:
    """Remove what `load` and `run` have left of an instance, or only the programs of other versions.

    :raises HostError: if the programs of other versions are the only ones.
    """
    name = read_options(typed, os.environ).instance
    pins, instance = Pins(name), Instance(name)
    loaded = pins.exist()
    if not loaded and not instance.exists():  # a mistyped name leaves no directory behind
        _print_nothing_loaded(name)
        return 0
    if typed.other_layouts:
        with instance.loading():
            if pins.other_layouts() and not pins.are_there():  # without them nothing would be balanced
                raise HostError(only_other_layouts(name, [path.name for path in pins.other_layouts()]))
            pins.remove_other_layouts()
        return 0
    with instance.locked(), ExitStack() as afterwards:
        afterwards.callback(instance.forget)
        afterwards.callback(loader.unload, pins)
        hosts_file = instance.hosts_file()
        if hosts_file:  # first, so that no name leads to an address that is no longer balanced
            with instance.as_writer():
                write_names(hosts_file, pins.instance, {})
    if not loaded:
        _print_nothing_loaded(name)
    return 0


def _print_nothing_loaded(instance: str) -> None:
    print(f"nothing was loaded as instance {instance}; {loaded_instances(instance_names())}")  # noqa: T201 - this is the output
