"""Put the whole session into a private network namespace, so that no test can send a packet off the machine."""

from __future__ import annotations

import os

from clb_discovery.netns import enter_private_network


def pytest_configure() -> None:
    """Enter the namespace before any thread or child exists; tests that need root fail by themselves without it."""
    if os.geteuid() == 0:
        enter_private_network()
