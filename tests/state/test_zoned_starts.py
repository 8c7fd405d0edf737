"""A start while discovery is down: pools that follow zones stay as they are in the kernel, unless the disk has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pytest

from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.answer import Answer, Failure
from clb_discovery.model.servers import Pool, RealServer, pools
from clb_discovery.model.service import Part, Service, pool_name
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.model.zones import Places, ZoneRule
from clb_discovery.state.last_good import LastGood
from tests.support.host import Host

VIP: Final = parse_vip("10.64.0.1:80")
RULE: Final = ZoneRule(map=((parse_network("10.1.0.0/16"), "own"), (parse_network("10.2.0.0/16"), "far")))
ONE: Final = (Part("consul:web"),)
NEXT: Final = (*ONE, Part("consul:next", priority=1))
SHARED: Final = (Part("consul:web", share=90), Part("consul:next", share=10))
ALIKE: Final = (*ONE, Part("consul:next"))


def zone(number: int, *hosts: int, weight: int = 3) -> Pool:
    """Return the real servers 10.ZONE.0.HOST:80; 1 is the own zone."""
    return tuple(RealServer(0, parse_address(f"10.{number}.0.{host}"), 80, weight) for host in hosts)


def service(parts: Sequence[Part]) -> Service:
    """Return the service with these parts."""
    return Service("web", pool_name(parts), (VIP,), parts=tuple(parts), zones=RULE)


def answer(servers: Pool, *lost: RealServer) -> Answer:
    """Return an answer with these servers, and with others that are critical."""
    out = tuple(one.endpoint for one in lost)
    return Answer(servers, out=out, places=Places({}, {one.endpoint: one.weight for one in lost}))


def answers(parts: Sequence[Part], lost: int) -> dict[str, Answer]:
    """Return answers of these parts, of which the first has lost some of its ten servers in the own zone."""
    near = zone(1, *range(1, 11))
    first = answer((*near[lost:], *zone(2, 1, 2, 3)), *near[:lost])
    second = answer((*zone(1, 20, 21, 22), *zone(2, 20)))
    return dict(zip((part.source for part in parts), (first, second), strict=False))


@pytest.mark.parametrize("disk", ["none", "before the loss", "fewer servers", "the same"])
@pytest.mark.parametrize("parts", [ONE, NEXT, SHARED, ALIKE], ids=["one", "next", "shared", "alike"])
@pytest.mark.parametrize("lost", [0, 5, 9])
def test_a_start_without_discovery_changes_nothing(parts: Sequence[Part], disk: str, lost: int) -> None:
    """Whatever the disk has: what the own zone keeps cannot be computed again without the answer that decided it."""
    host = Host([service(parts)], zone="own")
    host.hears(answers(parts, 0))
    stored: Mapping[str, LastGood] = host.disk if disk != "none" else {}
    host.hears(answers(parts, lost))
    if disk == "fewer servers":
        stored = {source: last._replace(servers=pools(last.servers.ipv4[-2:])) for source, last in stored.items()}
    stored = host.disk if disk == "the same" else stored
    started = Host([service(parts)], zone="own", installed=host.installed, stored=stored)
    started.publishes()
    assert started.found.plan.steps == ()
    started.hears({part.source: Failure("down") for part in parts})
    assert started.found.plan.steps == ()
    for source, found in answers(parts, lost).items():
        started.hears({source: found})
    assert started.installed.virtual[VIP].pool == host.installed.virtual[VIP].pool


def test_the_first_answer_divides_a_pool_again() -> None:
    """Also one with the same servers, and with the weights that the kernel has."""
    near, far = zone(1, 1, 2, weight=1), zone(2, 1, 2, weight=1)
    host = Host([service(ONE)], zone="own")
    host.hears({"consul:web": answer((*near, *far))})
    as_one = Host([service(ONE)], zone="far", installed=host.installed)
    as_one.publishes()
    assert [one.priority for one in as_one.installed.virtual[VIP].pool or ()] == [0, 0, 1, 1]
    as_one.hears({"consul:web": answer((*near, *(one._replace(priority=1) for one in far)))})
    assert {one.endpoint[0][13] for one in as_one.installed.virtual[VIP].pool or () if one.priority == 0} == {1}
    as_one.hears({"consul:web": answer((*near, *far))})
    assert {one.endpoint[0][13] for one in as_one.installed.virtual[VIP].pool or () if one.priority == 0} == {2}
