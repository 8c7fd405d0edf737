"""What `plan` says: nothing where nothing would change, and else which virtual servers and which of their servers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from clb_discovery.core.desired import Rejected
from clb_discovery.core.held import Held
from clb_discovery.core.model import Algorithm, RealServer, Vip, VirtualServer
from clb_discovery.core.plan import plan
from clb_discovery.core.preview import preview, render
from tests.core.strategies import DESIRED, FEW_VIPS

ONE, TWO = (RealServer(0, FEW_VIPS[0].address, port, 1) for port in (80, 81))
WEB = VirtualServer(FEW_VIPS[1], "web", "srv:web", Algorithm.RANDOM, (ONE, TWO))


def held(*servers: VirtualServer) -> Held:
    """Return what the kernel holds after a publication."""
    return plan(Held(), {server.vip: server for server in servers}, complete=True).result


@given(DESIRED, DESIRED)
def test_exactly_what_differs_is_told(first: dict[Vip, VirtualServer], second: dict[Vip, VirtualServer]) -> None:
    """A virtual server is named if, and only if, it comes, goes or becomes another; the text has a line for each."""
    before, after = held(*first.values()), held(*second.values())
    moved = {vip for vip in FEW_VIPS if _without_counts(before, vip) != _without_counts(after, vip)}
    document = preview(before, after, (), (), ())
    assert len(document["changes"]) == len(moved)
    titles = [line for line in render(document).splitlines() if line[0] in "+-~"]
    assert len(titles) == len(moved)
    assert (render(document) == "no changes") is not bool(moved)


def _without_counts(found: Held, vip: Vip) -> object:
    """Return what a virtual server does, without where the kernel has it."""
    published = found.virtual.get(vip)
    return published and replace(published, generation=0, slots=(), servers={})


def test_text_names_every_server() -> None:
    """A person sees what is added, removed and changed, what is held, and what is refused."""
    other = replace(WEB, algorithm=Algorithm.LEAST_CONN, pool=(ONE._replace(weight=3), TWO._replace(port=82)))
    new, gone = replace(WEB, vip=FEW_VIPS[4]), replace(WEB, vip=FEW_VIPS[0], pool=())
    refused = Rejected("web", ONE, "it is a VIP", "srv:web")
    document = preview(held(WEB, gone), held(other, new), [refused], ["srv:web"], ())
    assert render(document).splitlines() == [
        "- 10.64.0.1:*/tcp  web (srv:web)",
        "~ 10.64.0.1:6379/tcp  web (srv:web)  algorithm random -> least-conn  (held first: it removes much)",
        "    + 10.64.0.1:82  weight 1  priority 0",
        "    - 10.64.0.1:81",
        "    ~ 10.64.0.1:80  weight 3  priority 0",
        "+ [fd00:64::1]:6379/tcp  web (srv:web)  (held first: it removes much)",
        "    + 10.64.0.1:80  weight 1  priority 0",
        "    + 10.64.0.1:81  weight 1  priority 0",
        "! web: 10.64.0.1:80 is refused: it is a VIP",
        "virtual servers: 1 to add, 1 to change, 1 to remove",
    ]


def test_own_virtual_servers_are_not_told() -> None:
    """Those of the self-test are nobody's business."""
    assert preview(Held(), held(WEB), (), (), [WEB.vip])["changes"] == []


def test_text_names_hosts_files() -> None:
    """Lines of hosts files are shown below their file, and counted apart."""
    name = {"file": "/etc/hosts", "added": ["10.64.0.1 web.clb"], "removed": ["10.64.0.2 web.clb"]}
    assert render(preview(held(WEB), held(WEB), (), (), (), names=[name])).splitlines() == [
        "~ /etc/hosts",
        "    + 10.64.0.1 web.clb",
        "    - 10.64.0.2 web.clb",
        "hosts files: 1 to change",
    ]
    both = render(preview(held(), held(WEB), (), (), (), names=[name]))
    assert both.splitlines()[-1] == "virtual servers: 1 to add; hosts files: 1 to change"
