"""`status --watch`: the status at intervals, on one screen or as lines."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn

from rich.live import Live

from clb_discovery.documents.rates import rates
from clb_discovery.terminal.screen import is_terminal, show, terminal
from clb_discovery.terminal.status import Frame, Status


def watch(read: Callable[[], Mapping[str, Any]], seconds: float, *, as_json: bool) -> NoReturn:
    """Show the status every few seconds until interrupted, then restore the terminal.

    :param read: returns the document of `status --json`.
    :raises KeyboardInterrupt: by SIGINT.
    :raises SystemExit: by SIGTERM.
    """
    # The exit code is that of shells for signals; the terminal is restored first.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with _output(as_json=as_json) as output:
        before, then = None, 0.0
        while True:
            document, now, moment = read(), time.monotonic(), datetime.now(UTC)
            if as_json:
                print(json.dumps({"time": moment.isoformat().replace("+00:00", "Z"), **document}), flush=True)  # noqa: T201 - this is the output
            else:
                output(Status(document, moment, rates(before, document, now - then) if before else None))
            before, then = document, now
            time.sleep(seconds)


@contextmanager
def _output(*, as_json: bool) -> Iterator[Callable[[Status], None]]:
    if as_json or not is_terminal(sys.stdout):
        yield show
        return
    with Live(console=terminal(sys.stdout), screen=True, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda status: live.update(Frame(status), refresh=True)
