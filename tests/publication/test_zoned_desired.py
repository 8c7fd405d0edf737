"""Zones in desired state: what decides about them, and that only what it touches is built again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.servers import Endpoint, Pools, RealServer, pools
from clb_discovery.model.service import Part, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.model.zones import NO_PLACES, Places, ZoneFacts, ZoneRule
from clb_discovery.publication.desired import Desired, desired
from clb_discovery.publication.reconcile import Wanted, publication

WEB, WEB6, MAIL = parse_vip("10.64.0.1:80"), parse_vip("[fd00:64::1]:80"), parse_vip("10.64.0.2:80")
SERVERS: Final = tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(1, 9))
ENDS: Final = tuple(one.endpoint for one in SERVERS)
ZONES: Final = {end: "own" if number < 4 else "far" for number, end in enumerate(ENDS)}
WEB_SERVICE: Final = Service("web", "consul:web", (WEB,), zones=ZoneRule())
MAIL_SERVICE: Final = Service(
    "mail", "pool:two", (MAIL,), parts=(Part("consul:mail"), Part("srv:mail", priority=1)), zones=ZoneRule(3)
)


def facts(
    own: str | None = "own", places: Mapping[str, Places] | None = None, **unhealthy: frozenset[Endpoint]
) -> ZoneFacts:
    """Return the facts of the service web; names of pools without their kind."""
    given = {"consul:web": Places(ZONES)} if places is None else places
    return ZoneFacts(own, given, {f"consul:{name}": ends for name, ends in unhealthy.items()})


def tiers(found: Desired) -> list[int]:
    """Return the tier of each real server of the service web."""
    return [one.priority for one in sorted(found.virtual[WEB].pool, key=lambda one: one.endpoint)]


KNOWN: Final = {"consul:web": pools(SERVERS)}


def test_a_pool_follows_zones_only_with_a_rule_and_a_zone() -> None:
    """Otherwise it is what its source names, and the result has no zones."""
    found = desired([WEB_SERVICE], KNOWN, [], facts=facts())
    assert tiers(found) == [0] * 4 + [1] * 4
    assert found.zones == {"consul:web": ZONES}
    for service, own in ((WEB_SERVICE, None), (replace(WEB_SERVICE, zones=None), "own")):
        plain = desired([service], KNOWN, [], facts=facts(own))
        assert plain.virtual[WEB].pool == KNOWN["consul:web"].ipv4
        assert plain.zones == {}


def test_members_that_are_out_count_in_their_family_and_at_usable_addresses() -> None:
    """A capacity that could never serve a VIP is none of its pool."""
    gone = {(parse_address(text), 80): 10 for text in ("fd00::9", "127.0.0.1", "10.64.0.1")}
    zones = ZONES | dict.fromkeys(gone, "own")
    found = desired([WEB_SERVICE], KNOWN, [], facts=facts(places={"consul:web": Places(zones, gone)}))
    assert tiers(found) == [0] * 4 + [1] * 4
    gone[parse_address("10.0.0.99"), 80] = 4
    zones[parse_address("10.0.0.99"), 80] = "own"
    found = desired([WEB_SERVICE], KNOWN, [], facts=facts(places={"consul:web": Places(zones, gone)}))
    assert {*tiers(found)} == {0}
    six = replace(WEB_SERVICE, vips=(WEB, WEB6))
    servers = {"consul:web": pools([*SERVERS, RealServer(0, parse_address("fd00::1"), 80, 1)])}
    found = desired([six], servers, [parse_network("::/0")], facts=facts())
    assert [one.priority for one in found.virtual[WEB6].pool] == [0]


@pytest.mark.parametrize(("zone", "expected"), [("own", [0] * 8), ("far", [0] * 4 + [1] * 4)])
def test_members_without_known_addresses_count_in_their_zone(zone: str, expected: list[int]) -> None:
    """A zone of which most is critical is not whole because the names of those were never looked up."""
    places = Places(ZONES, {}, {"n9/web": (zone, 4)})
    found = desired([WEB_SERVICE], KNOWN, [], facts=facts(places={"consul:web": places}))
    assert tiers(found) == expected
    assert {one.weight for one in found.virtual[WEB].pool} == ({7, 3} if zone == "own" else {1})


SOME: Final = st.sets(st.sampled_from(ENDS)).map(frozenset)
FACTS: Final = st.builds(
    lambda own, zones, out, web, mail, divided: ZoneFacts(
        own,
        {"consul:web": Places(dict.fromkeys(zones, "own"), dict.fromkeys(out, 2)), "consul:mail": NO_PLACES},
        {pool: ends for pool, ends in (("consul:web", web), ("pool:two", mail)) if ends},
        divided,
    ),
    st.sampled_from(["own", "own", "far", None]),
    SOME,
    SOME,
    SOME,
    SOME,
    st.frozensets(st.sampled_from(["consul:web", "consul:mail", "srv:mail"])),
)
SETS: Final = st.lists(st.sampled_from(SERVERS), unique=True).map(pools)


@given(st.lists(st.tuples(FACTS, SETS, SETS), min_size=1, max_size=4))
def test_what_is_built_from_an_earlier_result_is_the_same(steps: list[tuple[ZoneFacts, Pools, Pools]]) -> None:
    """Whatever changes: zones of the host and of members, those that are out or unhealthy, starts, and the pools."""
    services = (WEB_SERVICE, MAIL_SERVICE)
    before: Desired | None = None
    for given_facts, web, mail in steps:
        known = {"consul:web": web, "consul:mail": mail, "srv:mail": web}
        before = desired(services, known, [], before, given_facts)
        assert before == desired(services, known, [], facts=given_facts)


@pytest.mark.parametrize(("ejected", "steps"), [(0, False), (1, False), (2, True)])
def test_an_ejection_is_published_only_if_the_zone_keeps_less(ejected: int, steps: bool) -> None:
    """Of four servers one may go: 1.4 times three is more than all."""

    def wanted(unhealthy: frozenset[Endpoint]) -> Wanted:
        return Wanted([WEB_SERVICE], [], KNOWN, {}, [], [], complete=True, facts=facts(web=unhealthy))

    first = publication(Installed(), wanted(frozenset()))
    found = publication(first.plan.result, wanted(frozenset(ENDS[:ejected])), first)
    assert bool(found.plan.steps) is steps
    again = publication(found.plan.result, wanted(frozenset(ENDS[:ejected])), found)
    assert again.plan.steps == ()
