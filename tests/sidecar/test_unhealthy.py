"""Real servers that do not count for the capacity of a zone."""

from __future__ import annotations

from typing import Final

from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, RealServer, Vip, VirtualServer
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from clb_discovery.sidecar.unhealthy import by_pool

ONE, TWO = (RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in (1, 2))
WEB, SAME, MAIL, GONE = (parse_vip(f"10.64.0.{number}:80") for number in (1, 2, 3, 4))


def installed() -> Installed:
    """Return the state of the maps: one service with two VIPs, and another one."""
    services = {WEB: "web", SAME: "web", MAIL: "mail"}
    virtual = {
        vip: VirtualServer(vip, name, f"consul:{name}", Algorithm.RANDOM, (ONE, TWO)) for vip, name in services.items()
    }
    return plan(Installed(), virtual, complete=True).result


INSTALLED: Final = installed()


def member(vip: Vip, server: RealServer) -> bytes:
    """Return a packed member."""
    return elements.pack_member(elements.pack_vip(vip), server)


def test_a_server_counts_as_out_for_its_pool() -> None:
    """At whichever VIP of the service it is out, and whether or not it is out at others."""
    found = by_pool(INSTALLED, [member(WEB, ONE), member(SAME, TWO)], {"consul:web"})
    assert found == {"consul:web": {ONE.endpoint, TWO.endpoint}}


def test_other_pools_are_left_out() -> None:
    """Those that do not follow zones, and virtual servers that are gone."""
    assert by_pool(INSTALLED, [member(MAIL, ONE), member(GONE, ONE)], {"consul:web"}) == {}
