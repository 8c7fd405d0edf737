"""`instances`: list the instances that are loaded on this host."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from clb_discovery import __version__
from clb_discovery.cli.status import print_json
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import read_info
from clb_discovery.datapath.pins import Pins, instance_names
from clb_discovery.documents.instances import Found, document


def main(typed: argparse.Namespace) -> int:
    """Print the instances, sorted by name; none is no error."""
    found = document(_found())
    if typed.json:
        print_json(found)
    else:
        from clb_discovery.terminal.instances import render  # noqa: PLC0415 - JSON does without
        from clb_discovery.terminal.screen import show  # noqa: PLC0415 - JSON does without

        show(render(found))
    return 0


def _found() -> Iterator[Found]:
    for name in instance_names():
        pins = Pins(name)
        layouts = pins.layouts()
        if not layouts:  # of another program, or just unloaded
            continue
        info = read_info(pins) if pins.have_maps() else None
        is_ours = info is not None and info.build == loader.build(info.loader)
        yield Found(name, layouts, info, __version__ if is_ours else None, Instance(name).holder())
