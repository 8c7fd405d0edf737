"""Fixtures of the end-to-end tests: each needs root, a cgroup and an instance of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe
from tests.support.knot import KnotServer
from tests.support.plane import OBJECTS, VIP4, VIP6, Plane, loaded_plane
from tests.support.spares import Spares


@pytest.fixture(autouse=True)
def _as_root() -> None:
    assert os.geteuid() == 0, "tests of the kernel's side need root: run them through sudo"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Return a cgroup for ordinary clients."""
    with made_cgroup() as path:
        yield path


@pytest.fixture
def new_instance() -> Iterator[str]:
    """Return the name of an instance that no other test uses, not loaded yet; its data plane is removed at the end."""
    name = f"test-{uuid4().hex[:8]}"
    yield name
    wipe(name)


@pytest.fixture
def instance(new_instance: str) -> str:
    """Return that name. Files whose tests are not about loading assign `loaded_instance` to this one."""
    return new_instance


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a directory that everybody may read, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="clb-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def config(directory: Path) -> Path:
    """Return the path of a configuration that everybody may read."""
    return directory / "clb.toml"


@pytest.fixture
def knot() -> Iterator[KnotServer]:
    """Run a DNS server with the zones `example` and `test`."""
    with KnotServer({"example": "", "test": ""}) as server:
        yield server


@pytest.fixture(scope="session")
def spares() -> Iterator[Spares]:
    """Return the loaded data planes that no test uses at present."""
    found = Spares()
    yield found
    found.close()


@pytest.fixture(scope="module", params=OBJECTS)
def _plane_of_module(spares: Spares, request: pytest.FixtureRequest) -> Iterator[Plane]:
    with loaded_plane(spares, request.param) as found:
        yield found


@pytest.fixture
def plane(_plane_of_module: Plane) -> Iterator[Plane]:
    """Return a data plane without virtual servers, once for each BPF object that we ship."""
    yield _plane_of_module
    _plane_of_module.clear()


@pytest.fixture(params=[VIP4, VIP6])
def vip(request: pytest.FixtureRequest) -> str:
    """Return a virtual server of each family."""
    found: str = request.param
    return found
