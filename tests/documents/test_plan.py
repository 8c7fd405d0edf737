"""What `plan` says: nothing where nothing would change, and else which virtual servers and which of their servers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from clb_discovery.documents.plan import preview
from clb_discovery.layout.installed import Installed
from clb_discovery.model import own_servers
from clb_discovery.model.servers import Algorithm, RealServer, Vip, VirtualServer
from clb_discovery.publication.plan import plan
from tests.support.strategies import DESIRED, FEW_VIPS

ONE, TWO = (RealServer(0, FEW_VIPS[0].address, port, 1) for port in (80, 81))
WEB = VirtualServer(FEW_VIPS[1], "web", "srv:web", Algorithm.RANDOM, (ONE, TWO))


def installed(*servers: VirtualServer) -> Installed:
    """Return what the kernel holds after a publication."""
    return plan(Installed(), {server.vip: server for server in servers}, complete=True).result


@given(DESIRED, DESIRED)
def test_exactly_what_differs_is_told(first: dict[Vip, VirtualServer], second: dict[Vip, VirtualServer]) -> None:
    """A virtual server is named if, and only if, it comes, goes or becomes another."""
    before, after = installed(*first.values()), installed(*second.values())
    moved = {vip for vip in FEW_VIPS if _without_counts(before, vip) != _without_counts(after, vip)}
    document = preview(before, after, (), ())
    assert len(document["changes"]) == len(moved)


def _without_counts(found: Installed, vip: Vip) -> object:
    """Return what a virtual server does, without where the kernel has it."""
    published = found.virtual.get(vip)
    return published and replace(published, generation=0, rows=(), servers={})


def test_change_tells_what_a_server_had_before() -> None:
    """A real server with another weight is told with both."""
    other = replace(WEB, pool=(ONE._replace(weight=3), TWO))
    (change,) = preview(installed(WEB), installed(other), (), ())["changes"]
    (changed,) = change["changed"]
    assert (changed["weight"], changed["priority"]) == (3, 0)
    assert changed["was"] == {"weight": 1, "priority": 0}


def test_own_virtual_servers_are_not_told() -> None:
    """Those of the self-test are hidden."""
    own = own_servers.virtual_servers("default").values()
    assert preview(Installed(), installed(*own), (), ())["changes"] == []
    assert preview(installed(*own), Installed(), (), ())["changes"] == []
