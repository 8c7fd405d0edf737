"""A poller: it queries Consul every few seconds and reloads HAProxy after a change of the answer.

Usage: python -m benchmarks.poller URL SERVICE ADDRESS:PORT SECONDS FOLDER. HAProxy is its child, as master and worker,
and is reloaded without losing its listeners.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.haproxy import written_out

WEIGHTS: Final = 256
"""The maximum weight of HAProxy; that of Consul is larger by the same factor."""


def servers(answer: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the real servers of an answer of /v1/health/service, in a fixed order, with HAProxy's weights."""
    found = {
        f"{entry['Service']['Address'] or entry['Node']['Address']}:{entry['Service']['Port']}": max(
            1, entry["Service"]["Weights"]["Passing"] // WEIGHTS
        )
        for entry in answer
    }
    return dict(sorted(found.items()))


def ask(url: str, service: str) -> dict[str, int]:
    """Return the healthy real servers from Consul."""
    question = f"{url}/v1/health/service/{service}?passing=1"
    with urllib.request.urlopen(question, timeout=10) as answer:  # noqa: S310 - of an agent of our own
        return servers(json.load(answer))


def main(url: str, service: str, bind: str, seconds: float, folder: Path) -> None:
    """Follow the service until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    config, control = folder / "polled.cfg", folder / "polled.socket"
    known = ask(url, service)
    config.write_text(written_out(control, bind, known))
    with subprocess.Popen(["haproxy", "-W", "-f", config]) as process:
        try:
            while process.poll() is None:
                time.sleep(seconds)
                found = ask(url, service)
                if found != known:
                    known = found
                    config.write_text(written_out(control, bind, known))
                    process.send_signal(signal.SIGUSR2)
        finally:
            process.terminate()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]))
