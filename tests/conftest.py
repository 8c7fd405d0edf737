"""Put the whole session into a private network namespace, so that no test can send a packet off the machine.

A busy machine is no failure: hypothesis measures no time, neither of an example nor of making one.
`--loader bcc` makes every test load the data plane with that loader; without it they take the default.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog
from hypothesis import HealthCheck, settings

from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.demo.private_network import enter_private_network
from tests.support.loading import LOADER_VARIABLE
from tests.vm.suite import ABOUT_THE_SIDECAR

HERE: Final = Path(__file__).parent
FILES: Final = 8192
"""Descriptors that tests have, for thousands of connections: most hosts give 1,024, and allow far more."""

settings.register_profile("clb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("clb")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the loader that tests use."""
    loaders = [str(loader) for loader in Loader if loader is not Loader.NONE]
    parser.addoption("--loader", choices=loaders, default=str(Loader.AUTO), help="load the data plane so")


def pytest_configure(config: pytest.Config) -> None:
    """Enter the namespace before any thread or child exists; tests that need root fail by themselves without it."""
    os.environ[LOADER_VARIABLE] = config.getoption("--loader")
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and output would be folded
    if os.geteuid() == 0:
        enter_private_network()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run what is about the kernel, one test after the other, another what is about the sidecar.

    Who is ready first runs all the rest, test by test.
    """
    kernel = HERE / "kernel"
    sidecar = {HERE / "test_systemd.py", *(kernel / name for name in (*ABOUT_THE_SIDECAR, "test_documents.py"))}
    for item in items:
        if item.path in sidecar:
            item.add_marker(pytest.mark.xdist_group("sidecar"))
        elif item.path.is_relative_to(kernel):
            item.add_marker(pytest.mark.xdist_group("kernel"))


@pytest.fixture(autouse=True)
def logs_as_at_first() -> Iterator[None]:
    """Undo the set-up of the log after a test that ran a command in this process, so that order does not matter."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    structlog.reset_defaults()
    if logging.root.level != level:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
