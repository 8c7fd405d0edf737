"""Every real server of an answer is in the pool of a VIP, or is reported as left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.documents.usage import Usage, usage
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import is_ipv4, parse_address
from clb_discovery.model.answer import Claim, OptIn, Refusal
from clb_discovery.model.servers import Protocol, RealServer, Unpublished, Vip, pools
from clb_discovery.model.service import Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.reconcile import Publication, Wanted, publication

_VIPS = [parse_vip(text) for text in ("10.64.0.1:80", "10.64.0.2:80", "[fd00:64::1]:80", "[fd00:64::2]:80")]
_ADDRESSES = [parse_address(text) for text in ("10.0.0.1", "10.0.0.2", "127.0.0.1", "0.0.0.0", "10.64.0.1", "fd00::1")]
_SERVERS = st.lists(
    st.builds(RealServer, st.just(0), st.sampled_from(_ADDRESSES), st.integers(1, 2), st.integers(0, 1), st.just(0))
)


def published(
    services: Sequence[Service], known: Mapping[str, Sequence[RealServer]], *claims: Claim
) -> dict[str, Usage]:
    """Return the usage of each source, with an empty kernel."""
    return usage(made(services, known, *claims))


def made(services: Sequence[Service], known: Mapping[str, Sequence[RealServer]], *claims: Claim) -> Publication:
    """Return a publication to an empty kernel."""
    return publication(
        Installed(),
        Wanted(
            services, claims, {source: pools(servers) for source, servers in known.items()}, {}, [], [], complete=True
        ),
    )


@given(st.lists(st.sampled_from(_VIPS), min_size=1, unique=True), _SERVERS)
def test_every_server_is_used_or_left_out(vips: list[Vip], servers: list[RealServer]) -> None:
    """Counts are those of the plan. A server in no pool is named or counted, and an empty pool is an objection."""
    made_of = made([Service("web", "srv:web", tuple(vips))], {"srv:web": servers})
    found = usage(made_of)["srv:web"]
    pools = {vip: made_of.plan.result.virtual[vip].pool or () for vip in vips}
    assert found.pools == {vip: len(pool) for vip, pool in pools.items()}
    assert (found.objection is not None) == (not all(pools.values()))
    used = {(server.address, server.port) for pool in pools.values() for server in pool}
    for server in servers:
        named = any(
            re.search(rf"real servers? .*{re.escape(str(server))}[ ,].*rejected", text) for text in found.left_out
        )
        family = f"of IPv{4 if is_ipv4(server.address) else 6} not used"
        counted = any(family in text for text in found.without_vip)
        assert ((server.address, server.port) in used) != (named or counted)


def test_automatic_vips_may_be_empty_in_one_family() -> None:
    """A service has one of each family, even if its servers are of one family. A VIP that was named needs servers."""
    server = RealServer(0, parse_address("10.0.0.1"), 80, 1)
    both = (parse_vip("240.64.0.1"), parse_vip("[fd0b::1]"))
    web = Service("web", "srv:web", both, automatic=Protocol.TCP)
    assert published([web], {"srv:web": [server]})["srv:web"].objection is None
    assert published([web], {"srv:web": []})["srv:web"].objection is not None
    named = Service("web", "srv:web", (*both, parse_vip("[fd00::1]:80")), automatic=Protocol.TCP)
    objection = published([named], {"srv:web": [server]})["srv:web"].objection
    assert objection
    assert "[fd00::1]:80" in objection
    assert "[fd0b::1]" not in objection


def test_objection_has_the_reason_of_an_empty_answer() -> None:
    """The reason that a source has found out is in the objection if there is no real server, and only then."""
    services = [Service(name, f"srv:{name}", (vip,)) for name, vip in zip(("web", "api"), _VIPS, strict=False)]
    known = {"srv:web": [], "srv:api": [RealServer(0, parse_address("127.0.0.1"), 80, 1)]}
    found = usage(made(services, known), dict.fromkeys(known, "the name does not exist"))
    assert str(found["srv:web"].objection).endswith("discovery returned none: the name does not exist")
    assert "does not exist" not in str(found["srv:api"].objection)


def test_services_of_a_catalog_are_reported_with_their_refusals() -> None:
    """One without any VIP has an objection. A source without a known answer is not reported."""
    opt_in = OptIn(refused=(Refusal("clb-vip 'x'", "is not a VIP"),))
    claim = Claim(Service("web", "consul:web", ()), opt_in)
    found = published([Service("db", "srv:db", (_VIPS[0],))], {"consul:web": []}, claim)
    assert found.keys() == {"consul:web"}
    assert found["consul:web"].objection == "it gets no VIP, so nothing of it is balanced"
    assert found["consul:web"].left_out == ("clb-vip 'x' is not a VIP",)


def test_the_objection_to_a_virtual_server_without_room_is_the_lack_of_room() -> None:
    """It does not claim that the servers cannot be used."""
    server = RealServer(0, parse_address("10.0.0.1"), 80, 1)
    web = Service("web", "srv:web", (_VIPS[0],))
    full = made([web], {"srv:web": [server]})._replace(
        plan=made([], {}).plan, unpublished=(Unpublished(_VIPS[0], "web", "srv:web", "the maps are full; use fewer"),)
    )
    assert usage(full)["srv:web"].objection == f"{_VIPS[0]} is not published: the maps are full; use fewer"
