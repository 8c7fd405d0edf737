"""A real dnsmasq: a small server with names of its own, and a forwarder to another one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.process import accepts, free_port, running, wait_until


@contextlib.contextmanager
def dnsmasq(folder: Path, *options: str) -> Iterator[int]:
    """Run it on 127.0.0.1, UDP and TCP, with these options and no configuration file; yield its port."""
    port = free_port()
    own = [f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts"]
    command = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file=", *own, *options]
    with running(command, folder / "dnsmasq.log"):
        wait_until(lambda: accepts(port), "dnsmasq answers")
        yield port
