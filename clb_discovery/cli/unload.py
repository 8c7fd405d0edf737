"""`unload`: detach and remove the data plane."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from pathlib import Path

from clb_discovery.cli.published_files import published_files
from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath.instance import RECORDS, Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins, instance_names
from clb_discovery.datapath.writer_lock import WriterLock
from clb_discovery.errors import HostError
from clb_discovery.hints import loaded_instances, only_other_layouts
from clb_discovery.hosts_file.file import remove_names
from clb_discovery.model import own_servers


def main(typed: argparse.Namespace) -> int:
    """Remove what `load` and `run` have left of an instance, or only the programs of other versions.

    :raises HostError: if only the programs of other versions balance anything, or names are left in a hosts file.
    """
    name = read_options(typed, os.environ).instance
    pins, instance = Pins(name), Instance(name)
    loaded = pins.exist()
    if not loaded and not instance.exists():  # a mistyped name leaves no directory behind
        _print_nothing_loaded(name)
        return 0
    if typed.other_layouts:
        with instance.loading():
            _require_ours(pins)
            pins.remove_other_layouts()
        return 0
    with instance.locked(), closing(WriterLock(pins)) as lock:
        lock.take()
        left = _remove_names(instance)  # first, so that no name leads to an address that is no longer balanced
        loader.unload(pins)
        if left:
            raise HostError("; ".join(left.values()))
        instance.forget()  # not before no file has names
    if not loaded:
        _print_nothing_loaded(name)
    return 0


def _remove_names(instance: Instance) -> dict[Path, str]:
    """Remove the names from each file with the rights of those that have listed it; return why some may be left."""
    left: dict[Path, str] = {}
    cleaned: set[Path] = set()
    for record in RECORDS:
        with instance.as_writer(record):
            files = published_files(instance, record) - cleaned
            failed = remove_names(sorted(files), instance.name)
        cleaned |= files - failed.keys()
        left = {path: why for path, why in left.items() if path not in cleaned} | failed
    return left


def _require_ours(pins: Pins) -> None:
    """Raise HostError if nothing would be balanced any more without the programs of other versions.

    A sidecar that runs proves nothing: it may be that of another version, or still wait for its first answer.
    """
    others = [path.name for path in pins.other_layouts()]
    if not others:
        return
    if not pins.are_there():
        raise HostError(only_other_layouts(pins.instance, others, loaded=False))
    with Maps(pins) as maps:
        published = maps.read().virtual.keys() - own_servers.virtual_servers(pins.instance).keys()
    if not published:
        raise HostError(only_other_layouts(pins.instance, others, loaded=True))


def _print_nothing_loaded(instance: str) -> None:
    print(f"nothing was loaded as instance {instance}; {loaded_instances(instance_names())}")  # noqa: T201 - this is the output
