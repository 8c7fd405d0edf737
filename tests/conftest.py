"""Put the whole session into a private network namespace, so that no test can send a packet off the machine.

A busy machine is no failure: hypothesis measures no time, neither of an example nor of making one.
`--loader bcc` makes every test load the data plane with that loader; without it they take the default. `--check` runs
only the tests that need no root, kernel, Consul or DNS server.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import structlog
from hypothesis import HealthCheck, settings

from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.demo.private_network import enter_private_network
from tests.support.loading import LOADER_VARIABLE
from tests.support.selection import needs_machine, without_machine
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
    parser.addoption(
        "--check", action="store_true", help="run only tests that need no root, kernel or server, without them"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Enter the namespace before any thread or child exists; tests that need root fail by themselves without it."""
    os.environ[LOADER_VARIABLE] = config.getoption("--loader")
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and output would be folded
    check, is_first = config.getoption("--check"), not hasattr(config, "workerinput")
    if os.geteuid() == 0 and (is_first or not check):
        enter_private_network()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    if check and is_first:  # the other processes of pytest-xdist come from this one
        stack = ExitStack()
        stack.enter_context(without_machine())
        config.add_cleanup(stack.close)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare `--check` the time of reading rooms and files of which it runs nothing."""
    return True if config.getoption("--check") and needs_machine(_path(collection_path)) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--check` does not run, and hand out the tests of the kernel.

    One process runs what is about the kernel, one test after the other, another what is about the sidecar. The one that
    is ready first runs all the remaining tests, one by one.
    """
    if config.getoption("--check"):
        by_need: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            by_need[needs_machine(_path(item.path), item.name.partition("[")[0])].append(item)
        config.hook.pytest_deselected(items=by_need[True])
        items[:] = by_need[False]
    kernel = HERE / "kernel"
    sidecar = {HERE / "test_systemd.py", *(kernel / name for name in (*ABOUT_THE_SIDECAR, "test_documents.py"))}
    for item in items:
        if item.path in sidecar:
            item.add_marker(pytest.mark.xdist_group("sidecar"))
        elif item.path.is_relative_to(kernel):
            item.add_marker(pytest.mark.xdist_group("kernel"))


def _path(path: Path) -> str:
    return str(path.relative_to(HERE)) if path.is_relative_to(HERE) else ""


@pytest.fixture(autouse=True)
def logs_as_at_first() -> Iterator[None]:
    """Undo the set-up of the log after a test that ran a command in this process, so that order does not matter."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    structlog.reset_defaults()
    if logging.root.level != level:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
