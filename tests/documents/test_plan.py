"""The document of `plan`: each virtual server that would change, with the changes of its real servers."""

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
    """Return the state of the maps after a publication."""
    return plan(Installed(), {server.vip: server for server in servers}, complete=True).result


@given(DESIRED, DESIRED)
def test_document_has_exactly_the_changes(first: dict[Vip, VirtualServer], second: dict[Vip, VirtualServer]) -> None:
    """A virtual server is in the document if and only if it is added, removed or changed."""
    before, after = installed(*first.values()), installed(*second.values())
    moved = {vip for vip in FEW_VIPS if _without_counts(before, vip) != _without_counts(after, vip)}
    document = preview(before, after, (), ())
    assert len(document["changes"]) == len(moved)


def _without_counts(found: Installed, vip: Vip) -> object:
    """Return a virtual server without its places in the maps."""
    published = found.virtual.get(vip)
    return published and replace(published, generation=0, index=0, row=0, rows=(), servers={})


def test_change_has_the_former_weight() -> None:
    """A real server whose weight changes has the new weight and the former one."""
    other = replace(WEB, pool=(ONE._replace(weight=3), TWO))
    (change,) = preview(installed(WEB), installed(other), (), ())["changes"]
    (changed,) = change["changed"]
    assert (changed["weight"], changed["priority"]) == (3, 0)
    assert changed["was"] == {"weight": 1, "priority": 0}


def test_own_virtual_servers_are_hidden() -> None:
    """The virtual servers of the self-test are not in the document."""
    own = own_servers.virtual_servers("default").values()
    assert preview(Installed(), installed(*own), (), ())["changes"] == []
    assert preview(installed(*own), Installed(), (), ())["changes"] == []
