"""The parts of a pool, as `status` and `plan` show them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from clb_discovery.documents.parts import add_parts, configured
from clb_discovery.documents.selection import of_services
from clb_discovery.documents.verdict import problems
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Pool, RealServer
from clb_discovery.model.service import Part, Service
from clb_discovery.terminal.parts import part_lines
from clb_discovery.terminal.screen import as_text
from clb_discovery.terminal.status import Status
from tests.support.statuses import source, status, virtual_server

NOW: Final = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
ONE, TWO, THREE = (parse_address(f"10.0.0.{host}") for host in (1, 2, 3))
FAILOVER: Final = (
    Part("consul:redis"),
    Part("consul:redis?dc=dc2", priority=1),
    Part("static:redis", priority=2),
)
CANARY: Final = (Part("consul:web", share=90), Part("consul:canary", share=10), Part("consul:off", share=0))


def document(parts: tuple[Part, ...], pool: Pool, shares: list[float]) -> dict[str, Any]:
    """Return the parts of a document, with the given shares of its real servers."""
    found: dict[str, Any] = {}
    add_parts(found, pool, shares, configured(Service("web", "pool:x", (), parts=parts)))
    return found


def test_a_pool_of_one_part_has_no_parts() -> None:
    """Its documents are what they were."""
    assert document((Part("consul:web"),), (RealServer(0, ONE, 80, 1),), [1.0]) == {}


@pytest.mark.parametrize(
    ("parts", "pool", "shares", "lines"),
    [
        (
            FAILOVER,
            (RealServer(0, ONE, 80, 1), RealServer(1, TWO, 80, 1, 1), RealServer(2, THREE, 80, 1, 1)),
            [1.0, 0.0, 0.0],
            [
                "part 0  consul:redis  priority 0  1 real server in tier 0  100.0% of connects",
                "part 1  consul:redis?dc=dc2  priority 1  2 real servers in tiers 1, 2  0.0% of connects",
                "part 2  static:redis  priority 2  no real servers of its own",
            ],
        ),
        (
            CANARY,
            (RealServer(0, ONE, 80, 9), RealServer(0, TWO, 80, 1, 0)),
            [0.9, 0.1],
            [
                "part 0  consul:web  share 90  2 real servers in tier 0  100.0% of connects",
                "part 1  consul:canary  share 10  no real servers of its own, its share goes to the others",
                "part 2  consul:off  share 0  not used while others are",
            ],
        ),
    ],
)
def test_each_part_has_a_line(parts: tuple[Part, ...], pool: Pool, shares: list[float], lines: list[str]) -> None:
    """It names the source, its place, its servers and its share; an empty part gives its share away."""
    assert list(part_lines(document(parts, pool, shares))) == lines


def test_parts_are_known_from_the_kernel_alone() -> None:
    """Without the report of a sidecar they have numbers and servers, but no names."""
    found: dict[str, Any] = {}
    add_parts(found, (RealServer(0, ONE, 80, 1), RealServer(1, TWO, 80, 1, 1)), [1.0, 0.0], ())
    assert list(part_lines(found))[1].startswith("part 1  from an unknown source")


@pytest.mark.parametrize("width", [80, 120])
def test_status_has_a_column_of_parts(width: int) -> None:
    """The column is there if a pool has parts; other pools have a dash in it, and no line is too long."""
    web, mail = virtual_server("web", 1, servers=2), virtual_server("mail", 2, servers=1)
    pool = (RealServer(0, ONE, 8080, 1), RealServer(1, TWO, 8080, 1, 1))
    add_parts(web, pool, [1.0, 0.0], configured(Service("web", "pool:x", (), parts=FAILOVER)))
    for real, server in zip(web["real_servers"], pool, strict=True):
        real["part"] = server.part
    sources = [source("consul:redis"), source("consul:redis?dc=dc2", "retrying", "No path to datacenter")]
    found = status(virtual_servers=[web, mail], sources=sources)
    lines = as_text(Status(found, NOW), width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split()[:2] for line in lines if ":8080" in line]
    assert rows == [["10.1.0.0:8080", "0"], ["10.1.0.1:8080", "1"], ["10.2.0.0:8080", "-"]]
    assert any("from 3 parts" in line for line in lines)
    assert [problem.subject for problem in problems(found)] == ["web"]
    assert of_services(found, ["web"])["sources"] == sources
    assert [one["service"] for one in of_services(found, ["redis?dc=dc2"])["virtual_servers"]] == ["web"]
