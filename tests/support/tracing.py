"""`trace` beside a test, and what it has printed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from tests.support.process import running, wait_until
from tests.support.sidecar import COMMAND


@contextmanager
def tracing(instance: str, output: Path, *options: str, end: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Run `trace` until the block is left, and wait until programs report.

    :param end: the signal that ends it.
    """
    with (
        running([*COMMAND, "trace", "--instance", instance, *options], output) as process,
        Maps(Pins(instance)) as maps,
    ):
        wait_until(maps.is_heard, "somebody listens")
        yield
        process.send_signal(end)
        assert process.wait(timeout=20) == 128 + end


def lines(output: Path) -> list[dict[str, Any]]:
    """Return the lines of `trace --json`."""
    return [json.loads(line) for line in output.read_text().splitlines() if line.endswith("}")]


def outcomes(output: Path) -> list[str]:
    """Return their outcomes."""
    return [line["outcome"] for line in lines(output)]
