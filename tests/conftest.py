"""Put the whole session into a private network namespace, so that no test can send a packet off the machine.

A busy machine is no failure: hypothesis measures no time, neither of an example nor of making one.
`--loader bcc` makes every test load the data plane with that loader; without it they take the default. `--check` runs
only the tests that need no root, kernel, Consul or DNS server.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
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
from tests.vm.suite import TESTED

HERE: Final = Path(__file__).parent
FILES: Final = 8192
"""Descriptors that tests have, for thousands of connections: most hosts give 1,024, and allow far more."""
OPTMEM: Final = Path("/proc/sys/net/core/optmem_max")
"""In a private network only if it is a limit of that network alone, which it is since 6.7."""

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
    os.unsetenv("COLUMNS")  # readline sets it, too, behind the back of os.environ
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a thousand commands would compile every module again
    sys.dont_write_bytecode = False
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--check` does not run, and keep together what pytest-xdist runs in one process.

    A file whose tests share a fixture stays together, so that it is set up once, and so do the tests of BCC, because
    each of them compiles for seconds. All other tests go one by one to the process that is ready first: they use names,
    ports and cgroups of their own, and each process has its own network.
    Before Linux 6.7 one test changes a limit of all networks: the tests that it could disturb stay together with it.
    Tests that stay together begin first, so that no process is left alone with them at the end. This hook has to run
    before that of pytest-xdist, which reads the marks.
    """
    if config.getoption("--check"):
        by_need: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            by_need[needs_machine(_path(item.path), item.name.partition("[")[0])].append(item)
        config.hook.pytest_deselected(items=by_need[True])
        items[:] = by_need[False]
    together = {item.path for item in items if _has_shared_fixture(item)} | {HERE / "kernel" / "test_bcc.py"}
    about_the_kernel = {HERE / "kernel" / name for name in TESTED}
    for item in items:
        if not OPTMEM.exists() and not about_the_kernel.isdisjoint({item.path, *item.path.parents}):
            item.add_marker(pytest.mark.xdist_group("kernel"))
        elif item.path in together:
            item.add_marker(pytest.mark.xdist_group(_path(item.path)))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Check that pytest-xdist knows what stays together, and keep Python's garbage collector from looking at it all.

    The collector would look at thousands of tests and modules again and again. It looks more rarely at all others, too:
    tests make far more objects than an application does, and few in cycles.
    """
    if getattr(session.config.option, "loadgroup", False):
        marks = ((item.nodeid, item.get_closest_marker("xdist_group")) for item in session.items)
        unseen = [test for test, mark in marks if mark and not test.endswith(f"@{mark.args[0]}")]
        assert not unseen, f"pytest-xdist has not seen the groups of {len(unseen)} tests, such as {unseen[0]}"
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _has_shared_fixture(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    fixtures = item._fixtureinfo.name2fixturedefs.values()  # noqa: SLF001 - there is no other way to see them
    return any(definition.scope == "module" for definitions in fixtures for definition in definitions)


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
