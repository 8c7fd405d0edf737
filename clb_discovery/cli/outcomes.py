"""Outcomes for `trace`: the program that learns them is attached while it runs, where nothing else needs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from clb_discovery.datapath import cgroup
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import OUTCOMES, Pins
from clb_discovery.errors import BusyError, HostError
from clb_discovery.hints import load_command
from clb_discovery.publication.outcomes import are_counted, are_needed

_PATIENCE: Final = 10.0  # seconds that another process has to attach it; a sidecar looks every two seconds
_PAUSE: Final = 0.05


@contextmanager
def followed(pins: Pins, instance: Instance, maps: Maps) -> Iterator[None]:
    """Let the kernel follow outcomes while the block runs. The caller holds the lock of tracing.

    If another process holds the lock for loading, that process attaches the program for us: a sidecar that loads, when
    it sees our lock, or `load`.

    :raises HostError: if the program cannot be attached, or a load was interrupted.
    """
    attached = _attach(pins, instance, maps)
    try:
        yield
    finally:
        if attached:
            _detach(pins, instance, maps)


def _attach(pins: Pins, instance: Instance, maps: Maps) -> bool:
    """Wait until it is attached; return whether this process has attached it."""
    until = time.monotonic() + _PATIENCE
    while True:
        info = maps.info()
        target = Path(info.cgroup) if info else None
        if target and (cgroup.identity(target) is None or loader.follows_outcomes(pins, target)):
            return False  # it is attached, or it will be together with the others when its cgroup is back
        try:
            with instance.attaching():
                if target and (found := maps.info()) and found.cgroup == str(target):
                    loader.follow_outcomes(pins, target)
                    return True
        except BusyError as error:
            if time.monotonic() > until:
                raise HostError(f"{OUTCOMES} is not attached, and that process does not attach it: {error}") from error
        if target is None and time.monotonic() > until:
            command = load_command(instance.name)
            raise HostError(f"{OUTCOMES} is not attached, because the last load was interrupted; run: {command}")
        time.sleep(_PAUSE)


def _detach(pins: Pins, instance: Instance, maps: Maps) -> None:
    """Detach it, unless something needs it now; a sidecar that loads decides by itself."""
    with suppress(BusyError), instance.attaching():
        installed = maps.read()
        if not are_needed(installed) and not are_counted(installed, maps.servers(installed)):
            loader.leave_outcomes(pins)
