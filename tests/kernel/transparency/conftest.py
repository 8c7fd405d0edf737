"""Fixtures of the tests of transparency: both objects, and all ways to address a virtual server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.plane import OBJECTS, Plane, loaded_plane
from tests.support.spares import Spares
from tests.support.transparency import SIDES, Side


@pytest.fixture(scope="module", params=OBJECTS)
def loaded(spares: Spares, request: pytest.FixtureRequest) -> Iterator[tuple[str, Plane]]:
    """Load each BPF object that we ship."""
    with loaded_plane(spares, request.param) as found:
        yield request.param, found


@pytest.fixture
def plane(loaded: tuple[str, Plane]) -> Iterator[Plane]:
    """Return a data plane without virtual servers."""
    _, found = loaded
    yield found
    found.clear()


@pytest.fixture
def refused(loaded: tuple[str, Plane]) -> str:
    """Return the error of a connect to an empty pool."""
    which, _ = loaded
    return "ECONNREFUSED" if which == "full" else "EPERM"


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


@pytest.fixture(params=[False, True], ids=["tcp", "udp"])
def udp(request: pytest.FixtureRequest) -> bool:
    """Return each protocol."""
    found: bool = request.param
    return found
