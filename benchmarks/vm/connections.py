"""The job inside a machine that measures connections at the client's end, from connect to close.

Usage: python -m benchmarks.vm.connections CONNECTS CLIENT-PROGRAM FILE. Client and server are on the loopback. The
server's end is in another cgroup, so no program of ours runs for it, as on another host. Direct connections come first,
while nothing is attached; then an empty program at one hook after the other, which shows what the kernel itself spends
for a call; then our data planes, one after the other; and direct connections again.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.client import CLOSES, Client, client
from benchmarks.planes import AGAIN, DIRECT, STATES, plane, serve_itself
from benchmarks.programs import ON_THE_WAY, Runs, counted, empty_programs, programs_of
from benchmarks.ways import REAL
from tests.support.cgroups import made_cgroup

PORT: Final = 7000
_TIME_WAIT: Final = 65.0
"""Seconds until the ports of closed connections are free again; they pass at once on this clock."""


def measured(connecting: Client, address: str, programs: Mapping[str, int], connects: int) -> dict[str, object]:
    """Measure both closes of connections to an address, and count the runs of programs separately."""
    found: dict[str, object] = {}
    for close in CLOSES:
        connect = partial(connecting.connect, address, close=close)
        runs: dict[str, Runs] = {}
        connect(connects // 10)
        time.sleep(_TIME_WAIT)
        times = connect(connects)
        time.sleep(_TIME_WAIT)
        if programs:
            runs = counted(programs, connect, connects)
            time.sleep(_TIME_WAIT)
        found[close] = {"times": times, "runs": runs}
    return found


def main(connects: int, program: Path) -> dict[str, object]:
    """Measure everything; return the results."""
    serve_itself()
    folder = Path("/tmp")  # noqa: S108 - the machine's own, in memory
    empty, rows = {}, {}
    with socket.create_server(("0.0.0.0", PORT), backlog=4096) as listener, made_cgroup() as bare:
        with client(program, listener, bare) as connecting:
            rows[DIRECT] = measured(connecting, REAL[0], {}, connects)
            for name in ON_THE_WAY:
                with empty_programs(bare, name) as programs:
                    empty[name] = measured(connecting, REAL[0], programs, connects)
        for state in STATES:
            with (
                plane(state, PORT, folder) as own,
                programs_of(own.pins) as programs,
                client(program, listener, own.cgroup) as connecting,
            ):
                for row, address in state.rows:
                    rows[row] = measured(connecting, address, programs, connects)
        with client(program, listener, bare) as connecting:
            rows[AGAIN] = measured(connecting, REAL[0], {}, connects)
    return {"empty": empty, "rows": rows}


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))), encoding="utf-8")
