"""The data planes whose connections are measured have the settings that their names promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planes import STATES, State, configured
from benchmarks.ways import REAL, VIP
from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.services import read_services
from clb_discovery.model.servers import Algorithm, PassiveHealth
from clb_discovery.model.text_forms import parse_vip

EXPECTED = {
    "bench-lean": (Algorithm.RANDOM, PassiveHealth(active=False, eject_after=0, connect_timeout_ms=0), 10),
    "bench-shipped": (Algorithm.RANDOM, PassiveHealth(), 10),
    "bench-least-conn": (Algorithm.LEAST_CONN, PassiveHealth(), 8),
}


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.instance))
def test_a_plane_has_its_settings(state: State, tmp_path: Path) -> None:
    """Lean neither ejects nor counts; least-conn has as many servers as one row of slots."""
    options = configured(state, 7000, tmp_path)
    (service,) = read_services(read_options(make_parser().parse_args(["run", *options]), {}))
    algorithm, health, servers = EXPECTED[state.instance]
    assert (service.algorithm, service.health) == (algorithm, health)
    assert [str(server) for server in service.parts[0].servers] == [f"{address}:7000" for address in REAL[:servers]]
    assert service.vips == (parse_vip(f"{VIP}:7000"),)
