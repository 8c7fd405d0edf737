"""The zones of pools, as `status` and `plan` show them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from clb_discovery.documents.verdict import problems
from clb_discovery.documents.zones import Zones, add_zones, by_zone
from clb_discovery.model.address import parse_address
from clb_discovery.terminal.screen import as_text
from clb_discovery.terminal.status import Status
from clb_discovery.terminal.zones import zone_lines
from tests.support.contract import assert_is_status
from tests.support.statuses import status, virtual_server

NOW: Final = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)


def zoned(zones: dict[str, list[str]], servers: int = 3) -> dict[str, Any]:
    """Return a virtual server whose pool follows zones; servers of `own` are in the first tier."""
    web = virtual_server("web", 1, servers=servers)
    for real in web["real_servers"]:
        near = f"{real['address']}:{real['port']}" in zones.get("own", [])
        real |= {"priority": int(not near), "target_share": 0.5 if near else 0.0}
    add_zones([web], Zones("own", {web["source"]: zones}))
    return web


def test_each_zone_has_a_line() -> None:
    """That of the host comes first, and servers without a zone last."""
    web = zoned({"far": ["10.1.0.2:8080"], "own": ["10.1.0.0:8080", "10.1.0.1:8080"]}, servers=4)
    assert [real["zone"] for real in web["real_servers"]] == ["own", "own", "far", None]
    assert list(zone_lines(web)) == [
        "zone own (own)  2 real servers in tier 0  100.0% of connects",
        "zone far  1 real server in tier 1  0.0% of connects",
        "without a zone  1 real server in tier 1  0.0% of connects",
    ]
    assert next(zone_lines(zoned({}))) == "zone own (own)  no real servers"


def test_many_zones_are_not_all_listed() -> None:
    """Eight lines, and the number of the others."""
    web = zoned({f"zone-{number}": [f"10.1.0.{number}:8080"] for number in range(12)}, servers=12)
    lines = list(zone_lines(web))
    assert (len(lines), lines[-1]) == (9, "and 5 more zones")


def test_pools_that_do_not_follow_zones_are_as_they_were() -> None:
    """Neither without a zone of the host, nor if the pool is not among those with zones."""
    for zones in (Zones(None, {"consul:web": {}}), Zones("own", {"consul:other": {}})):
        web, same = virtual_server("web", 1), virtual_server("web", 1)
        add_zones([web], zones)
        assert web == same


def test_names_by_zone() -> None:
    """As the state of the sidecar has them."""
    one, two = (parse_address("10.0.0.1"), 80), (parse_address("fd00::1"), 81)
    assert by_zone({one: "a", two: "b"}) == {"a": ["10.0.0.1:80"], "b": ["[fd00::1]:81"]}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_status_has_a_column_of_zones(width: int) -> None:
    """The column is there if a pool follows zones; a long name is cut, and no line is too long."""
    web = zoned({"own": ["10.1.0.0:8080"], "a zone with a long name \u202e": ["10.1.0.1:8080"]})
    found = status(virtual_servers=[web, virtual_server("mail", 2, servers=1)])
    found["zone"] = {"name": "own", "auto": True, "error": None}
    assert_is_status(found)
    lines = as_text(Status(found, NOW), width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.split()[0:2] == ["zone", "own,"] and "of the Consul agent" in line for line in lines)
    rows = [line.split()[1] for line in lines if ":8080" in line]
    assert rows == ["own", "a", "-", "-"]
    assert not list(problems(found))


@pytest.mark.parametrize("width", [80, 120])
def test_parts_and_zones_fit(width: int) -> None:
    """Both columns, with long addresses, zones and counters."""
    web = zoned({"own": ["10.1.0.0:8080"], "eu-central-1a": ["255.255.255.255:65535"]})
    web["parts"] = [{"source": "s", "priority": 0, "share": None, "real_servers": 3, "tiers": [0], "target_share": 1.0}]
    for part, real in enumerate(web["real_servers"]):
        real |= {"part": part, "weight": 65535, "connects": 99_999, "state": "ejected", "active": 9_999}
    web["real_servers"][1] |= {"address": "255.255.255.255", "port": 65535, "zone": "eu-central-1a"}
    lines = as_text(Status(status(virtual_servers=[web]), NOW), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "65535" in "".join(lines)


@pytest.mark.parametrize(("name", "stays"), [(None, "pools do not follow zones"), ("eu-1a", "eu-1a stays")])
def test_a_zone_that_cannot_be_read_is_a_problem(name: str | None, stays: str) -> None:
    """With what it means, and the reason of the agent."""
    found = status()
    found["zone"] = {"name": name, "auto": True, "error": "the token lacks agent:read"}
    (problem,) = problems(found)
    assert problem.text == f"the zone of this host cannot be read, {stays}: the token lacks agent:read"
