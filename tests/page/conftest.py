"""A real sidecar with services of every kind, and a real browser that shows its page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.page.scene import Scene, scene
from tests.support.cgroups import made_cgroup
from tests.support.chromium import Chromium, Tab, chromium
from tests.support.dataplane import wipe


@pytest.fixture(scope="module", name="scene")
def _scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Return a host with a sidecar, servers and traffic."""
    assert os.geteuid() == 0, "loading programs needs root: run the tests through sudo"
    instance = f"test-{uuid4().hex[:8]}"
    try:
        with made_cgroup() as cgroup, scene(instance, cgroup, tmp_path_factory.mktemp("scene")) as found:
            yield found
    finally:
        wipe(instance)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """Return a browser."""
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Chromium, scene: Scene) -> Tab:
    """Return a tab that shows the page, with all its services."""
    found = browser.open()
    found.size(1280, 900)
    found.goto(scene.origin + "/")
    found.wait_for("document.querySelectorAll('#services table').length >= 5")
    return found


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Return the directory of the screenshots, which are for people."""
    directory = Path(__file__).parent.parent.parent / ".cache" / "page"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
