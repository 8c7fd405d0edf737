"""`load`: load and attach the data plane."""

from __future__ import annotations

import argparse
import os

from clb_discovery.cli.read_options import read_options
from clb_discovery.datapath import cgroup, handover, units
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.sizes import sizes
from clb_discovery.datapath.neighbours import find_overlaps, others
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.writer_lock import WriterLock
from clb_discovery.errors import HostError
from clb_discovery.model.neighbours import relation
from clb_discovery.stderr import say


def main(typed: argparse.Namespace) -> int:
    """Load the programs, and leave the maps to the process that writes them."""
    options = read_options(typed, os.environ)
    os.umask(0o022)  # the writer and systemd read what is made here, whatever umask a unit sets
    pins, instance = Pins(options.instance), Instance(options.instance)
    outcomes = typed.outcomes == "on"
    with instance.loading() as locked, instance.noting_failed_load():
        alone = locked and WriterLock(pins).is_free()
        target = units.cgroup_of(typed.unit) if typed.unit else cgroup.resolve(options.cgroup)
        room = sizes(options.room_servers, options.room_sockets)
        loader.load(pins, target, options.loader, room=room, alone=alone, outcomes=outcomes)
        pins.create_writer_lock()
        if not outcomes:
            loader.leave_outcomes_unless_traced(pins)
        near = [one for one in others(pins, target) if relation(str(target), one.cgroup)]
        instance.write_loaded(cgroup.identity(target) or 0, near)
        if typed.group is not None:
            handover.share(pins, typed.group)
            instance.share(typed.group, alone=alone)
        ineffective = loader.objection(pins, target)
    if ineffective:
        raise HostError(ineffective)
    for overlap in find_overlaps(pins, target):
        say(f"clb-discovery: warning: {overlap}")  # it is loaded all the same
    return 0
