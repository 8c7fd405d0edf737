"""What every end-to-end test needs: root, a cgroup and an instance of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe


@pytest.fixture(autouse=True)
def _as_root() -> None:
    assert os.geteuid() == 0, "tests of the kernel's side need root: run them through sudo"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Return a cgroup for ordinary clients."""
    with made_cgroup() as path:
        yield path


@pytest.fixture
def instance() -> Iterator[str]:
    """Return the name of an instance that nobody else has; its data plane is removed at the end."""
    name = f"test-{uuid4().hex[:8]}"
    yield name
    wipe(name)
