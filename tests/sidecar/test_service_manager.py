"""Reports to the service manager, and its watchdog: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.service_manager import ServiceManager
from tests.support.pace import patient


def test_a_report_that_could_not_be_sent_is_sent_again(tmp_path: Path) -> None:
    """Otherwise the units after the sidecar would never start, or a reload never end."""
    path = tmp_path / "notify"
    manager = ServiceManager(Announcer(), {"NOTIFY_SOCKET": str(path)})
    manager.status("all fresh", ready=False)
    manager.status("all fresh", ready=True)

    def heard() -> list[str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            for _ in range(2):
                manager.status("all fresh", ready=True)
            listener.setblocking(False)
            messages = []
            with suppress(BlockingIOError):
                while True:
                    messages.append(listener.recv(4096).decode())
        path.unlink()
        return messages

    assert heard() == ["READY=1\nSTATUS=all fresh"]
    assert heard() == []
    manager.reloaded()
    assert heard() == ["READY=1\nSTATUS=all fresh"]
    manager.stopping()


def test_the_watchdog_needs_no_further_descriptor(tmp_path: Path) -> None:
    """A sidecar that is short of them for minutes lives, and is not killed."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(patient(5))
        manager = ServiceManager(Announcer(), {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "60000000"})
        manager.alive()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))  # poll(2) of one is allowed
        try:
            manager.alive()
            manager.stopping()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [listener.recv(4096) for _ in range(3)] == [b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_is_for_whom_it_is_meant(environment: dict[str, str], seconds: float | None) -> None:
    """The time counts if it is a number above zero and no other process is named."""
    assert ServiceManager(Announcer(), environment).watchdog == seconds
