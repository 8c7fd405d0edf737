"""What the log says of refusals: each once, and never without end."""

from __future__ import annotations

from structlog.testing import capture_logs

from clb_discovery.announce import Announcer
from clb_discovery.core.address import Address
from clb_discovery.core.desired import Rejected
from clb_discovery.core.model import RealServer, Refused


def test_refused_real_servers_are_counted_beyond_some() -> None:
    """Discovery may name any number; the same ones are not named again."""
    servers = [RealServer(0, Address(number.to_bytes(16)), 80, 1) for number in range(1000)]
    rejected = [Rejected("web", server, "it is unspecified; go away", "consul:web") for server in servers]
    announcer = Announcer()
    with capture_logs() as logs:
        announcer.rejected(rejected)
        announcer.rejected(rejected)
    assert [line["event"] for line in logs] == ["real server refused"] * 32 + ["more real servers refused"]
    assert (logs[-1]["count"], logs[0]["service"]) == (968, "web")
    with capture_logs() as logs:
        announcer.rejected(rejected[:-1])
        announcer.rejected(rejected)
    assert [line["server"] for line in logs] == [str(servers[-1])]


def test_refused_words_of_a_catalog_are_said_when_they_appear() -> None:
    """The service, the value and the way out are in one line."""
    old, new = Refused("VIP 10.64.0.1", "belongs to consul:a"), Refused("clb-vip 'x'", "is not a VIP")
    with capture_logs() as logs:
        Announcer().refused("web", [old], [old, new])
    assert [(line["service"], line["value"], line["reason"]) for line in logs] == [("web", *new)]
