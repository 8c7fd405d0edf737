"""The job inside a machine that measures connections at the client's end, from connect to close.

Usage: python -m benchmarks.vm.connections CONNECTS CLIENT-PROGRAM FILE. The servers are on another host, which the
client plays at a TUN device (`other_host.h`). An empty program at one hook after the other shows what the kernel itself
spends for a call; then come our data planes, one after the other. Direct connections come before each, while nothing is
attached, because what they take changes now and then by a few hundred instructions; and once more at the end.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.client import CLOSES, Client, Times, client_of_another_host
from benchmarks.planes import AGAIN, DIRECT, STATES, plane
from benchmarks.programs import ON_THE_WAY, counted, empty_programs, programs_of
from benchmarks.ways import REAL, VIP
from tests.support.cgroups import made_cgroup
from tests.support.sockets import socket_maker
from tests.support.tun import open_tun

PORT: Final = 7000
HERE: Final = "10.1.0.254/24"
"""The address of this host in the network of the servers."""
HELD: Final = 64
"""Connections that keep all servers busy."""
_BATCHES: Final = 5
"""The median of them counts: now and then, all connections of a batch take some 200 instructions more or less."""
_TIME_WAIT: Final = 65.0
"""Seconds until the ports of closed connections are free again; they pass at once on this clock."""


def measured(connecting: Client, address: str, programs: Mapping[str, int], connects: int) -> dict[str, object]:
    """Measure both closes of connections to an address, and count the runs of programs separately."""
    found: dict[str, object] = {}
    for close in CLOSES:
        connect = partial(_connect, connecting, address, close)
        batches = [connect(connects) for _ in range(_BATCHES)]
        runs = counted(programs, connect, connects) if programs else {}
        found[close] = {"times": [statistics.median(values) for values in zip(*batches, strict=True)], "runs": runs}
    return found


def _connect(connecting: Client, address: str, close: str, connects: int) -> Times:
    """Make connections while all ports are free."""
    time.sleep(_TIME_WAIT)
    return connecting.connect(address, connects, close)


@contextmanager
def other_host() -> Iterator[int]:
    """Lead the addresses of the servers to another host while the block runs; yield the descriptor of the device."""
    tun, _ = open_tun(HERE)
    try:
        yield tun
    finally:
        os.close(tun)


def main(connects: int, program: Path) -> dict[str, object]:
    """Measure everything; return the results."""
    folder = Path("/tmp")  # noqa: S108 - the machine's own, in memory
    empty, rows, before = {}, {}, {}
    with other_host() as tun, made_cgroup() as bare:
        client = partial(client_of_another_host, program, tun, PORT)

        def straight() -> dict[str, object]:
            with client(bare) as connecting:
                return measured(connecting, REAL[0], {}, connects)

        straight()  # leaves the kernel as all others find it
        rows[DIRECT] = straight()
        for name in ON_THE_WAY:
            before[name] = straight()
            with empty_programs(bare, name) as programs, client(bare) as connecting:
                empty[name] = measured(connecting, REAL[0], programs, connects)
        for state in STATES:
            before |= dict.fromkeys((AGAIN, state.busy, *dict(state.rows)), straight())
            with (
                plane(state, PORT, folder) as own,
                programs_of(own.pins) as programs,
                client(own.cgroup) as connecting,
            ):
                for row, address in state.rows:
                    rows[row] = measured(connecting, address, programs, connects)
                if state.busy:
                    with socket_maker(own.cgroup) as holder:
                        holder.connected((VIP, PORT), HELD)
                        rows[state.busy] = measured(connecting, VIP, programs, connects)
        rows[AGAIN] = straight()
    return {"empty": empty, "rows": rows, "before": before}


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))), encoding="utf-8")
