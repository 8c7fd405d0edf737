"""Outcomes for `trace`, when nothing says which cgroup they are of."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest

from clb_discovery.cli import outcomes
from clb_discovery.errors import HostError


def test_a_load_that_was_interrupted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are maps without a record of the load: waiting for it in silence would look like no connects."""
    monkeypatch.setattr(outcomes, "_PATIENCE", 0.1)
    instance, maps = MagicMock(), MagicMock()
    instance.name, maps.info.return_value = "test", None
    pins: Any = None
    with (
        pytest.raises(HostError, match=r"the last load was interrupted; run: .*load --instance test"),
        outcomes.followed(pins, instance, maps),
    ):
        pass
