"""What the main loop and the results of checks tell of servers, without a kernel and without checks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from clb_discovery.checks.health import Result
from clb_discovery.layout.installed import Installed
from clb_discovery.metrics.meters import Meters
from clb_discovery.sidecar.active_checks import ActiveChecks
from clb_discovery.sidecar.announcer import Announcer
from tests.checks.test_table import target


def test_a_late_result_of_a_server_that_is_not_followed_is_no_trouble() -> None:
    """Its check was running when a reload removed it: nothing would ever end that trouble."""
    publisher: Any = SimpleNamespace(times_recreated=0)

    async def story() -> None:
        checks = ActiveChecks(Announcer(), Meters(), lambda: None)
        await checks.follow(Installed(), {}, publisher)
        checks._heard(target(1), Result(None, "No route to host"))  # noqa: SLF001 - as its runner calls it
        await checks.follow(Installed(), {}, publisher)

    with capture_logs() as lines:
        asyncio.run(story())
    assert lines == []
