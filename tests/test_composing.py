"""docs/composing.md: each recipe is read as it is written, and does what the text promises."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.config.file import decode
from clb_discovery.config.options import Options, make_options
from clb_discovery.config.services import read_services
from clb_discovery.documents.shares import Member, target_shares
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import Pool, RealServer, VirtualServer
from clb_discovery.model.service import Service
from clb_discovery.model.zones import NO_PLACES, Places, ZoneFacts
from clb_discovery.publication.desired import desired
from clb_discovery.state.services import ServiceTable
from tests.support.documents import ROOT, blocks

AT: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
RANGES: Final = [parse_network("10.0.0.0/8")]


def options(content: str) -> Options:
    """Return the options of a file."""
    config = decode(content.encode())
    typed: dict[str, Any] = vars(make_parser().parse_args(["run", *config.arguments]))
    return make_options(typed, {}, config.entries, {})


def recipe(content: str) -> Service:
    """Return the service of a file."""
    (found,) = read_services(options(content))
    return found


def recipes() -> dict[str, str]:
    """Return the complete files in the document, by the names of their services."""
    found = [textwrap.dedent(one) for one in blocks((ROOT / "docs" / "composing.md").read_text())]
    return {recipe(one).name: one for one in found if one.strip().startswith(("consul = ", "real-range = "))}


def servers(*hosts: int) -> tuple[RealServer, ...]:
    """Return the real servers 10.0.0.HOST:80."""
    return tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in hosts)


class Host:
    """What a sidecar makes of the answers of its sources."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._table = ServiceTable([service], real_ranges=RANGES)
        self._now = 0.0

    def hears(self, answers: Mapping[str, tuple[RealServer, ...]], places: Places = NO_PLACES) -> VirtualServer:
        """Return the virtual server after answers of some sources, with the same places each."""
        for source, own in answers.items():
            self._now += 1
            assert self._table.hear(source, Answer(own, places=places), self._now, AT)
        known = {source: last.servers for source, last in self._table.known.items()}
        facts = ZoneFacts("eu-1a", self._table.places(self._table.known))
        (found,) = desired([self._service], known, RANGES, facts=facts).virtual.values()
        return found

    def reloads(self, service: Service) -> VirtualServer:
        """Return the virtual server after a reload with another service."""
        self._service = service
        self._table.adopt([service], real_ranges=RANGES)
        return self.hears({})


def shares(pool: Pool, parts: int) -> list[float]:
    """Return the share of connects of each part."""
    found = [0.0] * parts
    for server, share in zip(pool, target_shares([Member(one[0], one[3], ejected=False) for one in pool]), strict=True):
        found[server.part] += share
    return [round(share, 9) for share in found]


def test_each_recipe_is_there() -> None:
    """Failover, a canary, a migration, a database, and zones."""
    assert recipes().keys() == {"redis", "web", "orders", "db", "sessions"}


def test_the_failover_goes_from_part_to_part_and_back() -> None:
    """Each part takes all connects when those before it are empty, at once, and the first one as soon as it is back."""
    local, remote, static = "consul:redis", "consul:redis?dc=dc2", "static:redis"
    host = Host(recipe(recipes()["redis"]))
    found = host.hears({local: servers(1, 2), remote: servers(3), static: servers(9)})
    assert shares(found.pool, 3) == [1, 0, 0]
    assert shares(host.hears({local: ()}).pool, 3) == [0, 1, 0]
    assert shares(host.hears({remote: ()}).pool, 3) == [0, 0, 1]
    assert shares(host.hears({local: servers(1)}).pool, 3) == [1, 0, 0]


@pytest.mark.parametrize("count", [1, 3, 30])
def test_the_canary_gets_a_tenth(count: int) -> None:
    """However many servers it has, and none of the connects when it has none."""
    host = Host(recipe(recipes()["web"]))
    canary = servers(*range(100, 100 + count))
    assert shares(host.hears({"consul:web": servers(1, 2, 3), "consul:web-canary": canary}).pool, 2) == [0.9, 0.1]
    off = recipe(recipes()["web"].replace("share = 10 ", "share = 0 "))
    assert shares(host.reloads(off).pool, 2) == [1, 0]
    assert shares(host.hears({"consul:web-canary": ()}).pool, 2) == [1, 0]


def test_the_migration_keeps_every_server() -> None:
    """The pool has the same servers with DNS, with both, and with Consul alone; each has the same share throughout."""
    text = recipes()["orders"]
    head, _, end = text.partition("from = [")
    before = recipe(f'{head}srv = "_orders._tcp.example.com"\n'.replace("consul = true\n", ""))
    host = Host(before)
    found = [host.hears({"srv:_orders._tcp.example.com": servers(1, 2, 3)})]
    assert end
    found.append(host.reloads(recipe(text)))
    assert [str(one) for one in host.hears({"consul:orders": servers(1)}).pool] == [
        str(one) for one in servers(1, 2, 3)
    ]
    found.append(host.hears({"consul:orders": servers(1, 2, 3)}))
    found.append(host.reloads(recipe(f'{head}consul = "orders"\n')))
    assert len({tuple(one.endpoint for one in virtual.pool) for virtual in found}) == 1
    assert all(len({one.weight for one in virtual.pool}) == 1 for virtual in found)
    assert len({virtual.vip for virtual in found}) == 1


@pytest.mark.parametrize(
    ("out", "kept"), [(0, 1), (1, 1), (2, 1), (3, 0.98), (4, 0.84), (5, 0.7), (8, 0.28), (9, 0.1), (10, 0)]
)
def test_the_same_zone_comes_first_as_far_as_its_servers_can_take_it(out: int, kept: float) -> None:
    """Ten servers in the own zone of which some are critical, and nine in others: the table of the document."""
    own, others = servers(*range(1, 11)), servers(*range(101, 110))
    zones = {one.endpoint: "eu-1a" for one in own} | {one.endpoint: "eu-1b" for one in others}
    places = Places(zones, {one.endpoint: one.weight for one in own[:out]})
    found = Host(recipe(recipes()["sessions"])).hears({"consul:sessions": (*own[out:], *others)}, places).pool
    targets = target_shares([Member(one[0], one[3], ejected=False) for one in found])
    near = sum(share for one, share in zip(found, targets, strict=True) if zones[one.endpoint] == "eu-1a")
    assert round(near, 9) == kept


def test_the_database_follows_its_name() -> None:
    """A new primary replaces the former one at once; an empty answer changes nothing, until the name is back."""
    host = Host(recipe(recipes()["db"]))
    assert options(recipes()["db"]).on_remove == "reset"
    name = "dns:db.example.com:5432"
    assert host.hears({name: servers(1)}).pool == servers(1)
    assert host.hears({name: servers(2)}).pool == servers(2)
    assert host.hears({name: ()}).pool == servers(2)
    assert host.hears({name: servers(3, 4)}).pool == servers(3, 4)
