"""The watchdog of the service manager: sd_watchdog_enabled(3)."""

from __future__ import annotations

import os

import pytest

from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.service_manager import ServiceManager


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
