"""When the sidecar is ready, and when the programs of another layout can go."""

from __future__ import annotations

import pytest

from clb_discovery.sidecar.readiness import ALL_WITHIN, FRESH_WITHIN, Readiness


@pytest.fixture
def begun() -> Readiness:
    """Return one that begins at 100 s."""
    readiness = Readiness()
    readiness.begin(100.0)
    return readiness


def test_ready_once_everything_is_served_and_sources_had_their_time(begun: Readiness) -> None:
    """It becomes ready once, and stays ready."""
    assert not begun.is_settled(100.0, tried=False)
    assert begun.is_settled(100.0, tried=True)
    assert begun.is_settled(100.0 + FRESH_WITHIN, tried=False)
    assert not begun.reach(settled=False, served=True)
    assert not begun.reach(settled=True, served=False)
    assert begun.reach(settled=True, served=True)
    assert not begun.reach(settled=True, served=True)
    assert begun.is_ready


def test_another_layout_goes_when_ready(begun: Readiness) -> None:
    """Then nothing is lost with it, and if its removal fails it is tried again."""
    assert not begun.takes_over(101.0, published=True)
    begun.reach(settled=True, served=True)
    assert begun.takes_over(101.0, published=True)
    assert begun.takes_over(200.0, published=False)


def test_another_layout_does_not_wait_for_ever(begun: Readiness) -> None:
    """A service that never has an answer delays it for a while; without any answer its pools are all there is."""
    assert not begun.takes_over(100.0 + ALL_WITHIN - 0.1, published=True)
    assert begun.takes_over(100.0 + ALL_WITHIN, published=True)
    assert not begun.takes_over(100.0 + 1000 * ALL_WITHIN, published=False)


def test_nothing_has_begun() -> None:
    """Before the start nothing is over."""
    readiness = Readiness()
    assert not readiness.is_settled(1e9, tried=False)
    assert not readiness.takes_over(1e9, published=True)
