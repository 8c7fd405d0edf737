"""Assignment of VIPs: configured services first, then the current holder, then the lower name."""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import in_network, parse_address, parse_network
from clb_discovery.model.answer import Claim, OptIn, Refusal
from clb_discovery.model.check import Check
from clb_discovery.model.servers import Algorithm, HealthClaim, PassiveHealth, Protocol, Vip
from clb_discovery.model.service import Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.automatic_vips import automatic_addresses
from clb_discovery.publication.claims import Resolved, resolve

RANGES: Final = [parse_network("10.64.0.0/24"), parse_network("fd00:64::/64")]
NAMES: Final = ("a", "b", "c")
VIPS: Final = tuple(
    map(parse_vip, ["10.64.0.1", "10.64.0.1:80", "10.64.0.1:80/udp", "10.64.0.2:80", "[fd00:64::1]:80", "10.65.0.1:80"])
)
OPT_IN: Final = st.builds(
    OptIn,
    st.sets(st.sampled_from(VIPS), max_size=3).map(lambda found: tuple(sorted(found))),
    st.sampled_from([(), (), (Protocol.TCP,), (Protocol.TCP, Protocol.UDP)]),
    refused=st.sampled_from([(), (), (Refusal("clb-vip 'x'", "is not a VIP"),)]),
)
CLAIMS: Final = st.dictionaries(st.sampled_from(NAMES), OPT_IN).map(
    lambda found: [Claim(service(name), opt_in) for name, opt_in in found.items()]
)
SOURCE: Final = st.sampled_from([*(f"consul:{name}" for name in NAMES), "consul:gone", "srv:x"])
HOLDERS: Final = st.dictionaries(st.sampled_from(VIPS), SOURCE)
CONFIGURED: Final = st.sampled_from([(), (VIPS[0],), (VIPS[1], VIPS[4])]).map(
    lambda vips: [Service("x", "srv:x", vips)] if vips else []
)


def service(name: str) -> Service:
    """Return a service of the catalog."""
    return Service(name, f"consul:{name}", ())


def claim(name: str, *vips: str, automatic: bool = False) -> Claim:
    """Return a claim of these VIPs."""
    return Claim(service(name), OptIn(tuple(map(parse_vip, vips)), (Protocol.TCP,) if automatic else ()))


def given_to(found: Resolved) -> dict[str, list[str]]:
    """Return the VIPs of each service, by its name."""
    return {one.name: sorted(map(str, one.vips)) for one in found.services}


def installed(**vips: str) -> dict[Vip, str]:
    """Return the holders of VIPs, from names of services."""
    return {parse_vip(vip): f"consul:{name}" for name, vip in vips.items()}


def overlap(one: Vip, other: Vip) -> bool:
    """Tell whether a connect could match both."""
    return one._replace(port=0) == other._replace(port=0) and (one.port == other.port or 0 in {one.port, other.port})


def test_services_of_udp_alone_are_not_checked() -> None:
    """The check of a catalog is that of all services, and their servers need not listen on TCP."""
    checked = Service("dns", "consul:dns", (), check=Check(), health=PassiveHealth(checked=True))
    for vips, is_checked in (("10.64.0.1:53/udp",), False), (("10.64.0.1:53/udp", "10.64.0.1:53"), True):
        claims = [Claim(checked, OptIn(tuple(map(parse_vip, vips))))]
        (found,) = resolve((), claims, {}, RANGES).services
        assert (found.check is not None, found.health.checked) == (is_checked, is_checked)


@given(CONFIGURED, CLAIMS, HOLDERS)
def test_no_connect_is_for_two_services(
    configured: list[Service], claims: list[Claim], holders: dict[Vip, str]
) -> None:
    """No part of a VIP has two owners, VIPs of a catalog are inside the ranges, and configured services keep theirs."""
    found = resolve(configured, claims, holders, RANGES)
    assert list(found.services[: len(configured)]) == configured
    for one, other in combinations(found.services, 2):
        assert not [pair for pair in ((a, b) for a in one.vips for b in other.vips) if overlap(*pair)]
    for one in found.services[len(configured) :]:
        assert all(any(in_network(vip.address, network) for network in RANGES) for vip in one.vips)


@given(CONFIGURED, CLAIMS, HOLDERS)
def test_every_claim_is_granted_or_refused(
    configured: list[Service], claims: list[Claim], holders: dict[Vip, str]
) -> None:
    """Every claimed VIP is granted or reported."""
    found = resolve(configured, claims, holders, RANGES)
    granted = {one.source: one.vips for one in found.services}
    for one, opt_in, _ in claims:
        refused = {item.value for item in found.refused.get(one.source, ())}
        assert all(vip in granted[one.source] or f"VIP {vip}" in refused for vip in opt_in.vips)
        assert set(opt_in.refused) <= set(found.refused.get(one.source, ()))


@given(CONFIGURED, CLAIMS, HOLDERS, st.randoms(use_true_random=False))
def test_the_order_of_claims_does_not_matter(
    configured: list[Service], claims: list[Claim], holders: dict[Vip, str], random: Random
) -> None:
    """The order of claims has no effect."""
    shuffled = list(claims)
    random.shuffle(shuffled)
    assert resolve(configured, shuffled, holders, RANGES) == resolve(configured, claims, holders, RANGES)


@given(CONFIGURED, CLAIMS, HOLDERS)
def test_what_was_granted_stays(configured: list[Service], claims: list[Claim], holders: dict[Vip, str]) -> None:
    """After a publication, the same claims give the same VIPs, as after a restart; nothing free is refused."""
    first = resolve(configured, claims, holders, RANGES)
    published = {vip: one.source for one in first.services for vip in one.vips}
    again = resolve(configured, claims, published, RANGES)
    assert (given_to(again), again.refused) == (given_to(first), first.refused)


@given(CONFIGURED, CLAIMS, HOLDERS)
def test_who_holds_a_vip_and_claims_it_keeps_it(
    configured: list[Service], claims: list[Claim], holders: dict[Vip, str]
) -> None:
    """A holder keeps its VIP unless it is configured elsewhere; of overlapping holders, one keeps it."""
    found = {one.source: one.vips for one in resolve(configured, claims, holders, RANGES).services}
    disputed = [vip for one in configured for vip in one.vips] + [VIPS[5]]
    for one, opt_in, _ in claims:
        for vip in opt_in.vips:
            others = [other for other, source in holders.items() if source != one.source] + disputed
            if holders.get(vip) == one.source and not any(overlap(vip, other) for other in others):
                assert vip in found[one.source]


def test_the_first_holder_keeps_a_vip_then_the_lower_name() -> None:
    """A later claim is reported with the owner; when the holder goes, the next service gets the VIP at once."""
    claims = [claim("a", "10.64.0.1:80"), claim("b", "10.64.0.1:80")]
    found = resolve([], claims, {}, RANGES)
    assert given_to(found) == {"a": ["10.64.0.1:80"], "b": []}
    (refused,) = found.refused["consul:b"]
    assert str(refused) == "VIP 10.64.0.1:80 belongs to consul:a; register another one"
    assert given_to(resolve([], claims, installed(b="10.64.0.1:80"), RANGES)) == {"a": [], "b": ["10.64.0.1:80"]}
    assert given_to(resolve([], claims[:1], installed(b="10.64.0.1:80"), RANGES)) == {"a": ["10.64.0.1:80"]}


def test_a_reboot_changes_no_holder() -> None:
    """The kernel holds nothing then; the disk knows who did. What the kernel holds goes before it."""
    held = (parse_vip("10.64.0.1:80"),)
    claims = [claim("a", "10.64.0.1:80"), claim("b", "10.64.0.1:80")._replace(held=held)]
    assert given_to(resolve([], claims, {}, RANGES)) == {"a": [], "b": ["10.64.0.1:80"]}
    assert given_to(resolve([], claims, installed(a="10.64.0.1:80"), RANGES)) == {"a": ["10.64.0.1:80"], "b": []}
    wrong = OptIn(refused=(Refusal("clb-vip 'x'", "is not a VIP"),))
    assert given_to(resolve([], [Claim(service("b"), wrong, held)], {}, RANGES)) == {"b": ["10.64.0.1:80"]}


def test_what_is_configured_wins() -> None:
    """Also against the current holder."""
    configured = [Service("x", "srv:x", (parse_vip("10.64.0.1:80"),))]
    found = resolve(configured, [claim("a", "10.64.0.1:80")], installed(a="10.64.0.1:80"), RANGES)
    assert given_to(found) == {"x": ["10.64.0.1:80"], "a": []}
    assert str(found.refused["consul:a"][0]) == "VIP 10.64.0.1:80 belongs to srv:x; register another one"


@pytest.mark.parametrize(("first", "second"), [("10.64.0.1", "10.64.0.1:80"), ("10.64.0.1:80", "10.64.0.1")])
def test_a_port_cannot_be_taken_out_of_every_port(first: str, second: str) -> None:
    """A VIP for every port and one for a single port overlap; other protocols are other VIPs."""
    found = resolve([], [claim("a", first), claim("b", second, "10.64.0.1/udp")], {}, RANGES)
    assert given_to(found) == {"a": [first], "b": ["10.64.0.1/udp"]}
    assert "belongs to consul:a" in str(found.refused["consul:b"])
    both = resolve([], [claim("a", first, second)], {}, RANGES)
    assert given_to(both) == {"a": sorted([first, second])}


def test_a_vip_outside_the_ranges_is_refused() -> None:
    """The report names the ranges and both fixes."""
    found = resolve([], [claim("a", "10.65.0.1:80", "[fd00:64::1]:80")], {}, RANGES)
    assert given_to(found) == {"a": ["[fd00:64::1]:80"]}
    assert str(found.refused["consul:a"][0]) == (
        "VIP 10.65.0.1:80 is outside --vip-range 10.64.0.0/24, fd00:64::/64; register one inside, or widen the range"
    )


def test_a_mistake_takes_nothing_away() -> None:
    """A service whose claims are all refused keeps the VIPs that it holds, unless another service claims them."""
    holders = installed(a="10.64.0.1:80")
    assert given_to(resolve([], [claim("a", "10.65.0.1:80")], holders, RANGES)) == {"a": ["10.64.0.1:80"]}
    wrong = Claim(service("a"), OptIn(refused=(Refusal("clb-vip 'x'", "is not a VIP"),)))
    assert given_to(resolve([], [wrong], holders, RANGES)) == {"a": ["10.64.0.1:80"]}
    both = resolve([], [wrong, claim("b", "10.64.0.1:80")], holders, RANGES)
    assert given_to(both) == {"a": [], "b": ["10.64.0.1:80"]}
    assert given_to(resolve([], [claim("a", "10.64.0.2:80")], holders, RANGES)) == {"a": ["10.64.0.2:80"]}


def test_automatic_vips_are_those_of_the_name() -> None:
    """They are the same as those of a configured service, in each family, and the same for each protocol."""
    ipv4, ipv6 = automatic_addresses(["a"], RANGES)["a"]
    both = Claim(service("a"), OptIn((), (Protocol.TCP, Protocol.UDP)))
    (found,) = resolve([], [both], {}, RANGES).services
    assert set(found.vips) == {Vip(to, 0, protocol) for to in (ipv4, ipv6) for protocol in Protocol}


def test_nobody_takes_a_part_of_an_automatic_vip() -> None:
    """It belongs to its service alone, on all ports and protocols, also on a host that holds nothing yet."""
    (home,) = automatic_addresses(["a"], RANGES[:1])["a"]
    vip = Vip(home, 0, Protocol.TCP)
    thief = Claim(service("b"), OptIn((Vip(home, 53, Protocol.UDP),)))
    claims = [claim("a", automatic=True), thief]
    found = resolve([], claims, {vip: "consul:a"}, RANGES[:1])
    assert given_to(found) == {"a": [str(vip)], "b": []}
    without_state = resolve([], claims, {}, RANGES[:1])
    assert given_to(without_state) == given_to(found)
    assert without_state.refused == found.refused
    assert "belongs to consul:a" in str(found.refused["consul:b"])
    assert given_to(resolve([], claims[1:], {}, RANGES[:1]))["b"] == [str(thief.opt_in.vips[0])]
    holding = resolve([], claims, {thief.opt_in.vips[0]: "consul:b"}, RANGES[:1])
    assert given_to(holding)["b"] == [str(thief.opt_in.vips[0])]
    assert home not in {one.address for one in holding.services[0].vips}
    configured = [Service("x", "srv:x", (vip,), automatic=Protocol.TCP)]
    assert given_to(resolve(configured, [thief], {}, RANGES[:1]))["b"] == []


HOMES: Final = [addresses[0] for addresses in automatic_addresses(NAMES, RANGES[:1]).values()]
AT_HOMES: Final = st.builds(
    lambda home, port, protocol: OptIn((Vip(home, port, protocol),)),
    st.sampled_from(HOMES),
    st.sampled_from([0, 80]),
    st.sampled_from(Protocol),
)


@given(
    st.dictionaries(st.sampled_from([*NAMES, "d", "e"]), AT_HOMES | st.just(OptIn((), (Protocol.TCP,))), min_size=2),
    st.sampled_from([[], [Service("x", "srv:x", (Vip(HOMES[0], 443, Protocol.TCP),))]]),
)
def test_hosts_with_and_without_state_agree_on_automatic_vips(
    opt_ins: dict[str, OptIn], configured: list[Service]
) -> None:
    """Whatever other services name: one host has known the automatic ones for long, and one knows nothing yet."""
    claims = [Claim(service(name), opt_in) for name, opt_in in opt_ins.items()]
    earlier = resolve(configured, [one for one in claims if one.opt_in.automatic], {}, RANGES[:1])
    holders = {vip: one.source for one in earlier.services for vip in one.vips}
    old, new = resolve(configured, claims, holders, RANGES[:1]), resolve(configured, claims, {}, RANGES[:1])
    assert (given_to(new), new.refused) == (given_to(old), old.refused)
    later = resolve(configured, claims, {vip: one.source for one in new.services for vip in one.vips}, RANGES[:1])
    assert (given_to(later), later.refused) == (given_to(new), new.refused)


def test_a_vip_that_its_holder_exchanges_for_an_automatic_one_is_free_at_once() -> None:
    """Nothing would lead to another publication, so the next claim would be refused for ever."""
    claims = [claim("a", automatic=True), claim("b", "10.64.0.1:80")]
    found = resolve([], claims, installed(a="10.64.0.1"), RANGES)
    assert given_to(found)["b"] == ["10.64.0.1:80"]
    assert not found.refused


def test_a_name_that_is_configured_keeps_its_automatic_vip() -> None:
    """A service of the same name in a catalog would get the same VIP, and is refused."""
    (home,) = automatic_addresses(["x"], RANGES[:1])["x"]
    configured = [Service("x", "srv:x", (Vip(home, 0, Protocol.TCP),), automatic=Protocol.TCP)]
    found = resolve(configured, [claim("x", automatic=True)], {}, RANGES[:1])
    assert home not in {vip.address for vip in found.services[1].vips}


def test_a_range_that_is_full_is_reported() -> None:
    """A service without a free automatic VIP is reported; the others have theirs."""
    found = resolve([], [claim(name, automatic=True) for name in "abc"], {}, [parse_network("10.64.0.0/31")])
    without = [one for one in found.services if not one.vips]
    assert len(without) == 1
    (refused,) = found.refused[without[0].source]
    name = without[0].name
    assert str(refused) == (
        f"automatic VIP of '{name}' is not available: every address of 10.64.0.0/31 is taken; give a larger --vip-range"
    )


def test_settings_come_from_the_service_or_from_the_configuration() -> None:
    """The registered scheduler takes precedence, and least-conn counts active connections."""
    pattern = Service("a", "consul:a", (), Algorithm.ROUND_ROBIN, PassiveHealth(active=False))
    named = Claim(pattern, OptIn((parse_vip("10.64.0.1:80"),), (), Algorithm.LEAST_CONN))
    (found,) = resolve([], [named], {}, RANGES).services
    assert (found.algorithm, found.health.active) == (Algorithm.LEAST_CONN, True)
    (found,) = resolve([], [named._replace(opt_in=OptIn((VIPS[0],)))], {}, RANGES).services
    assert (found.algorithm, found.health.active) == (Algorithm.ROUND_ROBIN, False)
    assert found.vips[0].address == parse_address("10.64.0.1")
    assert found.health.connect_timeout_ms == PassiveHealth().connect_timeout_ms
    limited = named._replace(
        opt_in=OptIn((VIPS[0],), health=HealthClaim(connect_timeout_ms=700, eject_first_ms=90_000))
    )
    (found,) = resolve([], [limited], {}, RANGES).services
    assert found.health.connect_timeout_ms == 700
    assert (found.health.eject_first_ms, found.health.eject_most_ms) == (90_000, 90_000)
    assert found.health.silent_after_ms == named.service.health.silent_after_ms
