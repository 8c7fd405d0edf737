"""The real sidecar, killed by SIGKILL before one operation on the maps.

Usage: fatal_sidecar.py OPERATION ARGUMENT... Every element that a step writes or deletes counts as an operation, and so
do a link and a grace period. If the sidecar needs fewer operations, their number is printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import ClassVar

from clb_discovery.cli import main
from clb_discovery.datapath import plane
from clb_discovery.datapath.maps import Maps
from clb_discovery.publication.steps import Delete, Step, Store, Write


class FatalMaps(Maps):
    """Maps that carry out one element at a time, and kill the process before a chosen one."""

    fatal: ClassVar[int]
    done: ClassVar[int] = 0

    def carry_out(self, step: Step) -> None:
        """Carry out a step, or kill the process in the middle of it."""
        for operation in _operations(step):
            if FatalMaps.done == FatalMaps.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            super().carry_out(operation)
            FatalMaps.done += 1


def _operations(step: Step) -> Iterator[Step]:
    match step:
        case Write(map_, items):
            yield from (Write(map_, (item,)) for item in items)
        case Delete(map_, keys):
            yield from (Delete(map_, (key,)) for key in keys)
        case Store(links):
            yield from (Store((link,)) for link in links)
        case _:
            yield step


if __name__ == "__main__":
    FatalMaps.fatal = int(sys.argv[1])
    plane.Maps = FatalMaps  # type: ignore[attr-defined]  # the one knob the data plane has not
    code = main.main(sys.argv[2:])
    print(FatalMaps.done)
    sys.exit(code)
